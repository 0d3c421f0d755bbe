"""The figures of `benchmarks.landscapes`: trajectories on contours, losses against the rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.descents import DESCENTS, FUNCTIONS, RANGES, TOLERANCES, Function

Paths = Mapping[Any, Sequence[Tensor]]
Curves = Mapping[Any, tuple[Sequence[float], Sequence[float]]]

_THEIRS, _OURS, _END = "#f4a582", "#053061", "#b2182b"
_FUNCTIONS = {"bowl": "#0072b2", "waves": "#d55e00"}
_COLORS = dict(
    zip(TOLERANCES, ("#999999", "#000000", "#e69f00", "#009e73", "#0072b2", "#d55e00"), strict=True)
)
# What the page about the optimizers shows beside each update rule.
PAGES = {
    "sgd": ("SGD", "SGD with momentum"),
    "adagrad": ("Adagrad",),
    "rmsprop": ("RMSprop",),
    "adadelta": ("Adadelta",),
    "adam": ("Adam",),
    "adamw": ("AdamW",),
}
_SIDE = 3.0  # of the square that is drawn, from the middle
_LEVELS = 18
_SMALLEST, _LARGEST = 1e-9, 1e5  # losses beyond are drawn at the edge


def draw(paths: Paths, curves: Curves, folder: Path) -> Iterable[str]:
    """Draws all figures.

    Args:
        paths: By function and optimizer: our trajectory and torch's.
        curves: By function, end of the range and optimizer: learning rates and final losses.
        folder: Where the PNGs go.

    Yields:
        The name of each file, once it is written.

    Raises:
        SystemExit: If matplotlib is not installed.
    """
    for function in FUNCTIONS.values():
        figure, axes = _figure(3, 3)
        for axis, name in zip(axes, DESCENTS, strict=True):
            _trajectory(axis, function, name, paths)
        figure.suptitle(f"{function.name}, {function.formula}: {_steps(paths)} steps in float64")
        yield _save(figure, folder, f"trajectories-{function.name}.png", paths=True)
    figure, axes = _figure(len(FUNCTIONS), len(RANGES), width=5.0)
    places = [(function, end) for function in FUNCTIONS.values() for end in RANGES[::-1]]
    for axis, (function, end) in zip(axes, places, strict=True):
        _tolerance(axis, function, end, TOLERANCES, curves)
    rates = len(next(iter(curves.values()))[0])
    figure.suptitle(
        f"{rates} learning rates a curve, each a parameter group of one optimizer;\n"
        f"less than {_SMALLEST:g} and more than {_LARGEST:g} are drawn at the edges",
        fontsize=10,
    )
    yield _save(figure, folder, "tolerance.png", lines=TOLERANCES)
    for file, names in PAGES.items():
        yield _page(file, names, paths, curves, folder)


def _page(file: str, names: Sequence[str], paths: Paths, curves: Curves, folder: Path) -> str:
    """One optimizer: its trajectories, and its curves if it has some."""
    tolerant = [name for name in names if name in TOLERANCES]
    figure, axes = _figure(len(names), 4 if tolerant else 2)
    used = iter(axes)
    for name in names:
        for function in FUNCTIONS.values():
            _trajectory(next(used), function, name, paths)
        for end in RANGES[::-1] if tolerant else ():
            axis = next(used)
            for function, color in _FUNCTIONS.items():
                _curve(axis, curves[function, end, name], color, label=function)
            _losses(axis, f"{name}, learning rates to {end:g}", end)
            axis.legend(fontsize=7)
    return _save(figure, folder, f"{file}.png", paths=True)


def _figure(lines: int, columns: int, width: float = 3.4) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("The figures need matplotlib: pip install 'fusedopt[bench]'") from None
    figure = Figure(figsize=(width * columns, 3.0 * lines + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(lines, columns, squeeze=False).flat)


def _save(
    figure: Any, folder: Path, name: str, paths: bool = False, lines: Sequence[str] = ()
) -> str:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=_COLORS[line], label=line) for line in lines]
    if paths:
        handles += [
            Line2D([], [], color=_THEIRS, linewidth=5, label="torch.optim"),
            Line2D([], [], color=_OURS, linewidth=1, marker=".", label="fusedopt"),
            Line2D([], [], color=_END, linewidth=0, marker="*", label="last step"),
        ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False
    )
    figure.savefig(folder / name, dpi=100)
    return name


def _steps(paths: Paths) -> int:
    return len(next(iter(paths.values()))[0]) - 1


def _trajectory(axis: Any, function: Function, name: str, paths: Paths) -> None:
    ours, theirs = paths[function.name, name]
    axis.imshow(_levels(function).tolist(), cmap="Greys", vmin=0, vmax=1.7 * _LEVELS,
                extent=(-_SIDE, _SIDE, -_SIDE, _SIDE), origin="lower", aspect="auto")  # fmt: skip
    axis.plot(*theirs.T.tolist(), color=_THEIRS, linewidth=5, solid_capstyle="round")
    axis.plot(*ours.T.tolist(), color=_OURS, linewidth=0.8, marker=".", markersize=3)
    axis.plot(*ours[-1].tolist(), color=_END, marker="*", markersize=9)
    axis.set(xlim=(-_SIDE, _SIDE), ylim=(-_SIDE, _SIDE), xticks=(-2, 0, 2), yticks=(-2, 0, 2))
    rate = f"$\\gamma$ = {DESCENTS[name].lr[function.name]:g}"
    axis.set_title(f"{name} on the {function.name}, {rate}", fontsize=9)
    axis.set_xlabel("x", fontsize=8)
    axis.set_ylabel("y", fontsize=8)
    axis.tick_params(labelsize=7)


def _levels(function: Function) -> Tensor:
    """Bands of equal height on a square root's scale, so that they lie close at the bottom."""
    side = torch.linspace(-_SIDE, _SIDE, 200, dtype=torch.float64)
    x, y = torch.meshgrid(side, side, indexing="xy")
    height = (function.value(x, y) - function.minimum).clamp(min=0).sqrt()
    return (height * (_LEVELS / height.max())).floor()


def _tolerance(
    axis: Any, function: Function, end: float, names: Sequence[str], curves: Curves
) -> None:
    for name in names:
        _curve(axis, curves[function.name, end, name], _COLORS[name])
    _losses(axis, f"{function.name}, {function.formula}, learning rates to {end:g}", end)


def _curve(
    axis: Any,
    curve: tuple[Sequence[float], Sequence[float]],
    color: str,
    label: str | None = None,
) -> None:
    rates, losses = curve
    known = torch.tensor(losses).nan_to_num(torch.inf, torch.inf).clamp(_SMALLEST, _LARGEST)
    axis.plot(rates, known.tolist(), color=color, linewidth=1, label=label)


def _losses(axis: Any, title: str, end: float) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set(xlim=(end / 1000, end), ylim=(_SMALLEST / 2, _LARGEST * 2))
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("learning rate", fontsize=8)
    axis.set_ylabel("last step, above the minimum", fontsize=8)
    axis.tick_params(labelsize=7)
