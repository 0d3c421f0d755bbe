"""The charts: one run's curves, and the comparison of several."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Container, Mapping, Sequence
from typing import Any, BinaryIO

from fusedopt.train.state import Row

FEW = 30  # epochs; so many have markers


def _figure(width: float, height: float) -> Any:
    """Returns an empty figure that needs no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, file: BinaryIO) -> None:
    """Writes a figure as a PNG; a name in a script that the font lacks is drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from font")
        figure.savefig(file, format="png", dpi=120)


def _finish_epochs(axis: Any, epochs: int) -> None:
    """Gives an axis of epochs whole numbers, also where there is one epoch."""
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(steps=(1, 2, 5, 10), integer=True, min_n_ticks=1))
    if epochs <= 1:
        axis.set_xlim(0.5, 1.5)


def _finish_values(axis: Any, name: str) -> None:
    """Makes an axis logarithmic if its losses span decades, and its numbers plain to read.

    A range of less than a hundredth of the values is widened: its ticks would differ in their sixth
    digit only, and noise would look like a curve.
    """
    from matplotlib.ticker import LogLocator

    axis.grid(alpha=0.3)
    lines = [value for line in axis.get_lines() for value in line.get_ydata()]
    values = [float(value) for value in lines if math.isfinite(value)]
    if not values:
        return
    low, high = min(values), max(values)
    if name == "loss" and low > 0 and high >= 10 * low:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        few = high < 1000 * low  # decades: numbers between them are needed too
        axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5) if few else "auto"))
        axis.yaxis.set_minor_formatter((lambda value, _: f"{value:g}") if few else "")
        return
    if high - low < 0.01 * max(abs(low), abs(high)):
        middle, half = (low + high) / 2, 0.05 * max(abs(low), abs(high)) or 0.5
        axis.set_ylim(middle - half, middle + half)
    axis.ticklabel_format(axis="y", useOffset=False)


def draw_run(rows: Sequence[Row], file: BinaryIO, title: str, best: int | None = None) -> None:
    """Draws loss, accuracy and learning rate against epochs, as a PNG.

    Args:
        rows: figures of the epochs.
        file: where to.
        title: model, data, optimizer and seed.
        best: the epoch that the validation set says is best, for a dotted line.
    """
    figure = _figure(12, 3.9)
    figure.suptitle(title)
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) < FEW else None
    for axis, name in zip(figure.subplots(1, 3), ("loss", "accuracy", "lr"), strict=True):
        parts = ("",) if name == "lr" else ("train", "validation")
        for part in parts:
            values = [row[f"{part}_{name}" if part else name] for row in rows]
            axis.plot(epochs, values, marker=marker, markersize=3, label=part)
        axis.set_ylabel("learning rate" if name == "lr" else name)
        _finish_epochs(axis, len(rows))
        _finish_values(axis, name)
        if name != "lr" and best is not None:
            axis.axvline(best, color="gray", linestyle=":", zorder=0, label=f"best epoch: {best}")
        if name != "lr":
            axis.legend()
    save(figure, file)


def draw_comparison(
    runs: Mapping[tuple[str, str], Sequence[Row]],
    file: BinaryIO,
    diverged: Container[tuple[str, str]] = (),
    ranges: Mapping[tuple[str, str], tuple[Sequence[Row], Sequence[Row]]] | None = None,
    title: str = "",
) -> None:
    """Draws training loss and validation accuracy against epochs and against seconds, as a PNG.

    Args:
        runs: rows of each run, by optimizer and implementation: a colour for each optimizer,
            broad lines and dots for fusedopt's, dashed lines and crosses for torch's.
        file: where to.
        diverged: the runs that ended early, because their loss wasn't finite.
        ranges: least and greatest figures over several seeds, where `runs` are means.
        title: model, data and seeds.
    """
    figure = _figure(12, 8)
    figure.suptitle(title)
    optimizers = list(dict.fromkeys(optimizer for optimizer, _ in runs))
    axes = figure.subplots(2, 2, sharey="row")
    most, longest = max(map(len, runs.values()), default=0), 1e-9
    for (optimizer, impl), rows in runs.items():
        ours = impl == "fusedopt"
        style: dict[str, Any] = {
            "color": f"C{optimizers.index(optimizer)}",
            "linestyle": "-" if ours else "--",
            "linewidth": 3 if ours else 1.5,  # a dashed line on it leaves both to be seen
            "alpha": 0.5 if ours else 1,
            "marker": ("o" if ours else "x") if most < FEW else None,
            "markersize": 4 if ours else 7,
            "label": f"{impl} {optimizer}" + " (diverged)" * ((optimizer, impl) in diverged),
        }
        epochs = [row["epoch"] for row in rows]
        seconds = list(itertools.accumulate(row["seconds"] for row in rows))
        for line, name in zip(axes, ("train_loss", "validation_accuracy"), strict=True):
            values = [row[name] for row in rows]
            longest = max([longest, *seconds])
            for axis, x in zip(line, (epochs, seconds), strict=True):
                axis.plot(x, values, **style)
                if ranges and (optimizer, impl) in ranges:
                    low, high = ([row[name] for row in end] for end in ranges[optimizer, impl])
                    axis.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)
    for line, name in zip(axes, ("training loss", "validation accuracy"), strict=True):
        line[0].set_ylabel(name)
        _finish_epochs(line[0], most)
        line[1].set_xlabel("seconds")
        line[1].set_xlim(0, 1.05 * longest)
        for axis in line:
            _finish_values(axis, name.split()[1])
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
    save(figure, file)
