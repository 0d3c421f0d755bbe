"""Draws a result file of `benchmarks.step` as a PNG chart: `python -m benchmarks.chart`."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.results import Row, load, provenance
from benchmarks.tables import digits
from benchmarks.workloads import WORKLOADS

_FASTER, _SLOWER, _TORCH = "#1b7837", "#b2182b", "#bdbdbd"


def panels(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """fusedopt's rows with the most threads, by workload and dtype."""
    ours = [row for row in rows if row["implementation"] == "fusedopt" and row.get("ratio")]
    most = max((row["threads"] for row in ours), default=0)
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in ours:
        if row["threads"] == most:
            grouped.setdefault((row["workload"], row["dtype"]), []).append(row)
    return grouped


def draw(result: dict[str, Any], path: Path) -> None:
    """Draws one panel per workload and dtype: per optimizer, how many times faster than torch.

    Raises:
        SystemExit: If matplotlib is not installed, or there is nothing to compare.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("The chart needs matplotlib: pip install 'fusedopt[bench]'") from None
    grouped = panels(result["rows"])
    if not grouped:
        raise SystemExit("No chart: nothing here compares fusedopt with torch")
    columns = min(len(grouped), 3)
    lines = -(-len(grouped) // columns)
    tallest = max(len(rows) for rows in grouped.values())
    size = (max(4.6 * columns, 7.0), lines * (0.32 * tallest + 1.0) + 1.0)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for axis, ((workload, dtype), rows) in zip(axes, grouped.items(), strict=False):
        title = WORKLOADS[workload].title if workload in WORKLOADS else workload
        axis.set_title(f"{title}, {dtype}", fontsize=10)
        _bars(axis, rows)
    for axis in list(axes)[len(grouped) :]:
        axis.set_visible(False)
    figure.suptitle("optimizer.step(): how many times faster than torch's fastest path (1×)",
                    fontsize=11)  # fmt: skip
    source = "\n".join(textwrap.wrap(provenance(result), int(size[0] * 22)))
    figure.supxlabel(source, fontsize=6, color="#666666")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _bars(axis: Any, rows: list[Row]) -> None:
    """One bar per optimizer on a logarithmic axis, with 10th and 90th percentile."""
    values = [row["ratio"]["median"] for row in rows]
    spread = [
        [row["ratio"]["median"] - row["ratio"]["p10"] for row in rows],
        [row["ratio"]["p90"] - row["ratio"]["median"] for row in rows],
    ]
    places = range(len(rows))
    colors = [_FASTER if value >= 0.98 else _SLOWER for value in values]
    widths = [value - 1 for value in values]  # from torch's 1 to the right, or to the left
    axis.barh(places, widths, left=1, color=colors, xerr=spread, ecolor="#444444", capsize=2)
    axis.set_yticks(places, [row["optimizer"] for row in rows])
    axis.invert_yaxis()
    axis.set_xscale("log")
    ends = [row["ratio"][key] for row in rows for key in ("median", "p10", "p90")]
    low, high = min(0.7, *ends), max(2.0, *ends)
    axis.set_xlim(low * 0.9, high * (high / low) ** 0.25)  # room for the labels
    ticks = [m * 10.0**e for e in range(-2, 4) for m in (1, 2, 5)]
    axis.set_xticks([tick for tick in ticks if low <= tick <= high])
    axis.axvline(1, color=_TORCH, linewidth=2, zorder=0)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axis.minorticks_off()
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for place, row in zip(places, rows, strict=True):
        label = f" {digits(row['ratio']['median'])}×"
        axis.text(row["ratio"]["p90"], place, label, va="center", fontsize=9)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.chart", description=__doc__)
    parser.add_argument("result", type=Path, help="a result file of benchmarks.step")
    parser.add_argument("png", type=Path, help="the picture to write")
    options = parser.parse_args()
    draw(load(options.result), options.png)


if __name__ == "__main__":
    main()
