"""Draws when it pays: what a program gains against the optimizer phase's share of its time."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.programs.program import CLASS, TORCH, WHOLE
from benchmarks.programs.table import cases, is_measured
from benchmarks.results import setting

_CLASS, _WHOLE, _LINE, _LIMIT = "#5aae61", "#1b7837", "#bdbdbd", "#762a83"
_MARKS = {
    CLASS: ("o", _CLASS, "only the class changed"),
    WHOLE: ("D", _WHOLE, "clipping and averages, too"),
}
_LEAST = 0.1  # a share in percent that the axis, which is logarithmic, shows
# Where a name may stand, in points from its program's mark.
_PLACES = ((6, 0), (6, 9), (6, -9), (-6, 9), (-6, -9), (-6, 0), (6, 18), (6, -18), (-6, 18))


def draw(result: dict[str, Any], path: Path) -> None:
    """Draws a point for each program, and two where more can be gained than by the class.

    Raises:
        SystemExit: If matplotlib is not installed, or nothing was measured.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("The chart needs matplotlib: pip install 'fusedopt[bench]'") from None
    found = [case for _, case in cases(result["rows"]) if is_measured(case)]
    if not found:
        raise SystemExit("No chart: no program was measured")
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    shares = [max(100 * case[TORCH]["share"], _LEAST) for case in found]
    ratios = [row["ratio"]["median"] for case in found for row in _ours(case)]
    _scale(axis, shares, ratios)
    for share, case in zip(shares, found, strict=True):
        _point(axis, share, case)
    axis.set_title("When it pays: the more of its time a program spends in the optimizer phase",
                   fontsize=11)  # fmt: skip
    axis.set_xlabel("optimizer phase with torch's default, % of the program's time")
    axis.set_ylabel("torch's time / ours, whole program")
    axis.legend(loc="upper left", fontsize=8, frameon=False)
    source = "\n".join(textwrap.wrap(setting(result), 130))
    figure.supxlabel(source, fontsize=7)
    _name(axis, shares, found)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _ours(case: dict[str, Any]) -> list[Any]:
    return [case[name] for name in (CLASS, WHOLE) if name in case]


def _point(axis: Any, share: float, case: dict[str, Any]) -> None:
    """The medians, with 10th and 90th percentile, and a line from the one to the other."""
    middles = [row["ratio"]["median"] for row in _ours(case)]
    axis.plot([share] * len(middles), middles, color=_CLASS, linewidth=2)
    for name, (marker, color, _) in _MARKS.items():
        if name in case:
            ratio = case[name]["ratio"]
            ends = [[ratio["median"] - ratio["p10"]], [ratio["p90"] - ratio["median"]]]
            axis.errorbar([share], [ratio["median"]], ends, fmt=marker, color=color, elinewidth=1,
                          markersize=5)  # fmt: skip


def _scale(axis: Any, shares: Sequence[float], ratios: Sequence[float]) -> None:
    """Both axes logarithmic; torch's 1, and what a phase that took no time would give."""
    least, most = min(shares) / 1.6, min(95.0, max(shares) * 1.6)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(least, most)
    low, high = min(0.95, *ratios), max(1.3, *ratios)
    axis.set_ylim(low * 0.97, high * 1.1)
    axis.axhline(1, color=_LINE, linewidth=2, zorder=0)
    curve = [least * (most / least) ** (step / 200) for step in range(201)]
    limit = [1 / (1 - share / 100) for share in curve]
    label = "the most there is: a phase that takes no time"
    axis.plot(curve, limit, "--", color=_LIMIT, linewidth=1, zorder=0, label=label)
    for marker, color, label in _MARKS.values():
        axis.plot([], [], marker, color=color, label=label)
    ticks = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 50, 80)
    axis.set_xticks([tick for tick in ticks if least <= tick <= most])
    axis.set_yticks([tick / 10 for tick in range(5, 40) if low <= tick / 10 <= high * 1.1])
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axis.minorticks_off()
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _name(axis: Any, shares: Sequence[float], found: Sequence[dict[str, Any]]) -> None:
    """Writes each program's name where it covers no other."""
    renderer = axis.figure.canvas.get_renderer()
    axis.figure.draw(renderer)  # fixes where everything is
    taken: list[Any] = []
    for share, case in sorted(zip(shares, found, strict=True), key=lambda each: each[0]):
        at = share, max(row["ratio"]["median"] for row in _ours(case))
        text = axis.annotate(case[TORCH]["program"], at, _PLACES[0], textcoords="offset points",
                             fontsize=8, va="center")  # fmt: skip
        for place in (*_PLACES, _PLACES[0]):
            text.xyann = place
            text.set_horizontalalignment("left" if place[0] > 0 else "right")
            box = text.get_window_extent(renderer)
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
