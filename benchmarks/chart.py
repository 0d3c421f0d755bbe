"""Draws a result file of `benchmarks.step` as a PNG chart: `python -m benchmarks.chart`."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.optimizers import OPTIMIZERS
from benchmarks.results import Row, load, setting
from benchmarks.tables import digits
from benchmarks.workloads import WORKLOADS

# From light to dark by size of the type; the usual one stands out.
_COLORS = {"float32": "#1b7837", "float64": "#00441b", "bfloat16": "#a6dba0", "float16": "#5aae61"}
_SLOWER, _LINE = "#b2182b", "#bdbdbd"
_EQUAL = 0.98  # a ratio from here on counts as equal


def _index(names: Iterable[str], name: str) -> int:
    """Where a name stands; what is unknown comes last."""
    known = list(names)
    return known.index(name) if name in known else len(known)


def place(row: Row) -> tuple[int, ...]:
    """Where a row of `benchmarks.step` stands in charts and tables."""
    return (
        _index(_COLORS, row["dtype"]),
        row["threads"],
        _index(OPTIMIZERS, row["optimizer"]),
        _index(WORKLOADS, row["workload"]),
    )


def panels(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """fusedopt's rows with the most threads, by workload and dtype."""
    ours = [row for row in rows if row["implementation"] == "fusedopt" and row.get("ratio")]
    most = max((row["threads"] for row in ours), default=0)
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(ours, key=lambda row: (_index(WORKLOADS, row["workload"]), place(row))):
        if row["threads"] == most:
            grouped.setdefault((row["workload"], row["dtype"]), []).append(row)
    return grouped


def draw(result: dict[str, Any], path: Path) -> None:
    """Draws one panel per workload: per optimizer and dtype, how many times faster than torch.

    Raises:
        SystemExit: If matplotlib is not installed, or there is nothing to compare.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("The chart needs matplotlib: pip install 'fusedopt[bench]'") from None
    by_workload: dict[str, list[Row]] = {}
    for (workload, _), rows in panels(result["rows"]).items():
        by_workload.setdefault(workload, []).extend(rows)
    if not by_workload:
        raise SystemExit("No chart: nothing here compares fusedopt with torch")
    columns = min(len(by_workload), 3)
    lines = -(-len(by_workload) // columns)
    tallest = max(map(len, by_workload.values()))
    size = (max(4.6 * columns, 7.0), lines * (max(0.3 * tallest, 1.0) + 0.8) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    dtypes = list(dict.fromkeys(row["dtype"] for rows in by_workload.values() for row in rows))
    for axis, (workload, rows) in zip(axes, by_workload.items(), strict=False):
        title = WORKLOADS[workload].title if workload in WORKLOADS else workload
        axis.set_title(title if len(dtypes) > 1 else f"{title}, {dtypes[0]}", fontsize=10)
        _bars(axis, rows)
    for axis in axes[len(by_workload) :]:
        axis.set_visible(False)
    _finish(figure, dtypes, result, int(size[0] * 20))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _finish(figure: Any, dtypes: Sequence[str], result: dict[str, Any], width: int) -> None:
    """Title, the dtypes' colours, and where the numbers come from."""
    from matplotlib.patches import Patch

    figure.suptitle("optimizer.step(): how many times faster than torch's fastest path (1×)",
                    fontsize=11)  # fmt: skip
    patches = [Patch(color=_COLORS[dtype], label=dtype) for dtype in dtypes]
    if len(dtypes) == 1:
        patches[0].set_label("faster, or within 2 %")
    slower = any(
        row["ratio"]["median"] < _EQUAL for rows in panels(result["rows"]).values() for row in rows
    )
    patches += [Patch(color=_SLOWER, label="slower")] * slower
    source = "\n".join(textwrap.wrap(setting(result), width))
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8,
                  title=source, title_fontsize=7, frameon=False)  # fmt: skip


def _bars(axis: Any, rows: Sequence[Row]) -> None:
    """Bars on a logarithmic axis, with 10th and 90th percentile; an optimizer's stand together."""
    rows = sorted(rows, key=lambda row: (_index(OPTIMIZERS, row["optimizer"]), place(row)))
    names = [row["optimizer"] for row in rows]
    # One apart, and half more between optimizers that have several bars.
    gap = 0.5 if len(set(names)) < len(names) else 0.0
    groups = list(dict.fromkeys(names))
    places = [i + gap * groups.index(name) for i, name in enumerate(names)]
    ratios = [row["ratio"] for row in rows]
    spread = [[ratio["median"] - ratio["p10"] for ratio in ratios],
              [ratio["p90"] - ratio["median"] for ratio in ratios]]  # fmt: skip
    slower = [ratio["median"] < _EQUAL for ratio in ratios]
    colors = [_SLOWER if less else _COLORS[row["dtype"]]
              for row, less in zip(rows, slower, strict=True)]  # fmt: skip
    widths = [ratio["median"] - 1 for ratio in ratios]  # from torch's 1 to the right, or left
    axis.barh(places, widths, left=1, color=colors, xerr=spread, ecolor="#444444", capsize=2)
    middle = {name: [p for p, other in zip(places, names, strict=True) if other == name]
              for name in groups}  # fmt: skip
    axis.set_yticks([sum(each) / len(each) for each in middle.values()], groups)
    axis.invert_yaxis()
    _scale(axis, [value for ratio in ratios for value in ratio.values()])
    for y, ratio, less in zip(places, ratios, slower, strict=True):
        label = f" {digits(ratio['median'])}×"
        color = _SLOWER if less else "black"
        axis.text(max(ratio["p90"], 1), y, label, va="center", fontsize=8, color=color)


def _scale(axis: Any, ends: Sequence[float]) -> None:
    """A logarithmic axis with torch's 1 as a line."""
    axis.set_xscale("log")
    low, high = min(0.7, *ends), max(2.0, *ends)
    axis.set_xlim(low * 0.9, high * (high / low) ** 0.25)  # room for the labels
    steps = (1, 2, 5) if high < 60 * low else (1,)
    ticks = [step * 10.0**power for power in range(-2, 4) for step in steps]
    axis.set_xticks([tick for tick in ticks if low <= tick <= high])
    axis.set_xlabel("torch's time / ours", fontsize=8)
    axis.axvline(1, color=_LINE, linewidth=2, zorder=0)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axis.minorticks_off()
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.chart", description=__doc__)
    parser.add_argument("result", type=Path, help="a result file of benchmarks.step")
    parser.add_argument("png", type=Path, help="the picture to write")
    options = parser.parse_args()
    try:
        draw(load(options.result), options.png)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
