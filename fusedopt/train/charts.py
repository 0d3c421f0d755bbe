"""The charts: one run's curves, and the comparison of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from fusedopt.train.state import Row


def _figure(width: float, height: float) -> Any:
    """Returns an empty figure that needs no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_run(rows: Sequence[Row], file: BinaryIO) -> None:
    """Draws loss, accuracy and learning rate against epochs, as a PNG."""
    figure = _figure(12, 3.6)
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) < 30 else None
    for axis, name in zip(figure.subplots(1, 3), ("loss", "accuracy", "lr"), strict=True):
        parts = ("",) if name == "lr" else ("train", "validation")
        for part in parts:
            values = [row[f"{part}_{name}" if part else name] for row in rows]
            axis.plot(epochs, values, marker=marker, markersize=3, label=part)
        axis.set(title="learning rate" if name == "lr" else name, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        if name != "lr":
            axis.legend()
    figure.savefig(file, format="png", dpi=120)


def draw_comparison(runs: Mapping[tuple[str, str], Sequence[Row]], file: BinaryIO) -> None:
    """Draws training loss and validation accuracy against epochs and against seconds, as a PNG.

    Args:
        runs: rows of each run, by optimizer and implementation: a colour for each optimizer,
            solid lines for fusedopt's, dashed ones for torch's.
        file: where to.
    """
    figure = _figure(12, 8)
    optimizers = list(dict.fromkeys(optimizer for optimizer, _ in runs))
    axes = figure.subplots(2, 2, sharey="row")
    for (optimizer, impl), rows in runs.items():
        color, style = f"C{optimizers.index(optimizer)}", "-" if impl == "fusedopt" else "--"
        seconds = [sum(row["seconds"] for row in rows[: i + 1]) for i in range(len(rows))]
        for line, name in zip(axes, ("train_loss", "validation_accuracy"), strict=True):
            values = [row[name] for row in rows]
            for axis, x in zip(line, ([row["epoch"] for row in rows], seconds), strict=True):
                axis.plot(x, values, style, color=color, label=f"{impl} {optimizer}")
    for line, name in zip(axes, ("training loss", "validation accuracy"), strict=True):
        line[0].set_ylabel(name)
        for axis, unit in zip(line, ("epochs", "seconds"), strict=True):
            axis.set_xlabel(unit)
            if unit == "epochs":
                axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(alpha=0.3)
    axes[0][0].set_yscale("log")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
    figure.savefig(file, format="png", dpi=120)
