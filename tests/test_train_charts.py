"""The charts of a run and of a comparison: something is drawn, and its numbers can be read."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the training script needs fusedopt[train]")

from fusedopt.train import charts
from fusedopt.train.confusion import draw_confusion
from fusedopt.train.state import Row

# Such as 2.19 or 1e-08, and not 2.18964 × 10^0.
PLAIN = re.compile(r"[−-]?\d+(\.\d+)?(e-\d+)?")


def rows(epochs: int, decay: float = 0.9, loss: float = 2.3, accuracy: float = 0.5) -> list[Row]:
    return [
        {
            "epoch": i + 1,
            "train_loss": loss * decay**i,
            "validation_loss": 1.1 * loss * decay**i,
            "train_accuracy": accuracy,
            "validation_accuracy": 1 - (1 - accuracy) * decay**i,
            "lr": 0.1 * 0.9**i,
            "seconds": 0.4,
        }
        for i in range(epochs)
    ]


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of the figure that is drawn next, after it was drawn."""
    found: list[Any] = []
    figure = charts._figure

    def remember(*size: float) -> Any:
        made = figure(*size)
        savefig = made.savefig

        def save(file: io.BytesIO, **options: Any) -> None:
            savefig(file, **options | {"dpi": 30})
            found.extend(made.axes)

        made.savefig = save
        return made

    monkeypatch.setattr(charts, "_figure", remember)
    return found


def labels(axis: Any) -> list[str]:
    """The numbers at an axis's ticks that are seen."""
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    seen = [tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high]
    assert axis.get_offset_text().get_text() == ""
    return [text for text in seen if text]


def check(axes: list[Any], epochs: int) -> None:
    """Something is drawn on each, within the axes, and numbers are plain and differ."""
    for axis in axes:
        for line in axis.get_lines():
            low, high = axis.get_xlim()
            assert len(line.get_xdata()) == epochs
            assert all(low < x < high for x in line.get_xdata())
            assert line.get_marker() not in ("", "None", None) or epochs >= 30
        for numbers in (labels(axis.yaxis), labels(axis.xaxis)):
            assert 1 <= len(numbers) == len(set(numbers)) <= 14, numbers
            assert all(PLAIN.fullmatch(text) and len(text) <= 7 for text in numbers), numbers
        if axis.get_xlabel() == "epoch":
            assert all(text.isdigit() for text in labels(axis.xaxis))
        assert axis.get_xlabel() in ("epoch", "seconds")


@pytest.mark.parametrize(("epochs", "decay"), [(1, 0.9), (2, 0.05), (9, 0.7), (100, 0.9)])
def test_a_runs_chart(axes: list[Any], epochs: int, decay: float) -> None:
    charts.draw_run(rows(epochs, decay), io.BytesIO(), "lenet on digits, seed 1", epochs)
    assert [axis.get_ylabel() for axis in axes] == ["loss", "accuracy", "learning rate"]
    assert axes[0].figure.get_suptitle() == "lenet on digits, seed 1"
    marks = [axis.get_lines()[-1] for axis in axes[:2]]
    assert [mark.get_label() for mark in marks] == [f"best epoch: {epochs}"] * 2
    assert all(list(mark.get_xdata()) == [epochs] * 2 for mark in marks)
    for axis in axes[:2]:
        axis.get_lines()[-1].remove()  # the others are checked as in a comparison

    for axis in axes[:2]:
        check([axis], epochs)
    assert axes[0].get_yscale() == ("log" if decay**epochs < 0.1 else "linear")


@pytest.mark.parametrize("epochs", [1, 2, 100])
def test_a_comparisons_chart(axes: list[Any], epochs: int) -> None:
    runs = {
        (name, impl): rows(epochs, decay)
        for name, decay in (("sgd", 0.93), ("adam", 0.9))
        for impl in ("fusedopt", "torch")
    }
    charts.draw_comparison(runs, io.BytesIO())
    assert len(axes) == 4
    check(axes, epochs)
    if epochs < 30:  # both are seen where they are the same
        ours, torchs = axes[0].get_lines()[:2]
        assert (ours.get_marker(), torchs.get_marker()) == ("o", "x")
    else:  # a narrow line on a broad one
        ours, torchs = axes[0].get_lines()[:2]
        assert ours.get_linewidth() > torchs.get_linewidth()


def test_the_range_over_seeds_is_drawn(axes: list[Any]) -> None:
    runs = {("sgd", "fusedopt"): rows(3), ("adam", "fusedopt"): rows(3)}
    ranges = {("sgd", "fusedopt"): (rows(3, loss=2.0), rows(3, loss=2.6))}
    charts.draw_comparison(runs, io.BytesIO(), (), ranges)
    check(axes, 3)
    assert [len(axis.collections) for axis in axes] == [1] * 4
    low, high = axes[0].collections[0].get_datalim(axes[0].transData).intervaly
    assert (low, high) == (2.0 * 0.9**2, 2.6)


def test_noise_is_not_drawn_as_a_curve(axes: list[Any]) -> None:
    """Losses that differ in their seventh digit, whose ticks all read 2.18964 x 10^0."""
    epochs = 2
    runs = {("sgd", "fusedopt"): rows(epochs, 1 - 1e-8, 2.18964, 0.1)}
    runs["sgd", "torch"] = rows(epochs, 1 - 1e-8, 2.1896401, 0.1)
    charts.draw_comparison(runs, io.BytesIO())
    check(axes, epochs)
    low, high = axes[0].get_ylim()
    assert low < 2.15 and high > 2.23


def test_losses_and_accuracies_of_0(axes: list[Any]) -> None:
    charts.draw_run(rows(2, 0.5, 0.0, 0.0), io.BytesIO(), "")
    check(axes[:2], 2)


def test_runs_that_diverged(axes: list[Any]) -> None:
    """Also before their first epoch was done, and all of them."""
    runs = {("sgd", "torch"): rows(1), ("adam", "torch"): rows(3), ("adam", "fusedopt"): []}
    charts.draw_comparison(runs, io.BytesIO(), {("sgd", "torch"), ("adam", "fusedopt")})
    handles = axes[0].get_legend_handles_labels()[1]
    assert handles == ["torch sgd (diverged)", "torch adam", "fusedopt adam (diverged)"]
    assert [len(line.get_xdata()) for line in axes[0].get_lines()] == [1, 3, 0]
    charts.draw_comparison({("sgd", "torch"): []}, io.BytesIO(), {("sgd", "torch")})


def test_names_that_the_font_lacks_print_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        charts.draw_run(rows(2), io.BytesIO(), "lenet on folder:\u72d7")
        draw_confusion(np.eye(2, dtype=int), ["\u72d7", "cat"], "\u72d7", io.BytesIO())
