"""A loss that is no finite number ends a run, and no checkpoint with such numbers replaces one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("tensorboard", reason="the training script needs fusedopt[train]")

from train_runs import (  # noqa: F401
    SMALL,
    assert_same,
    error_of,
    metrics,
    no_chart,
    read,
    short_measurement,
    train,
)

from fusedopt.train import compare, guard, loop, main, run

STEPS = 4  # of an epoch


class Poison(dict[int, float]):
    """By number of a training batch, from 1, what is added to its loss."""

    seen = 0  # batches so far


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    values, cross_entropy = Poison(), F.cross_entropy

    def poisoned(logits: Tensor, *arguments: Any, **options: Any) -> Tensor:
        values.seen += logits.requires_grad
        loss = cross_entropy(logits, *arguments, **options)
        return loss + values.get(values.seen, 0.0) if logits.requires_grad else loss

    monkeypatch.setattr(F, "cross_entropy", poisoned)
    return values


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("options", [(), ("--precision", "fp16"), ("--ema", 0.9)])
def test_the_last_good_checkpoint_is_kept(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    poison: Poison,
    value: float,
    options: tuple[object, ...],
) -> None:
    train(*SMALL, *options, "--epochs", 1, "--out", tmp_path / "good")
    poison[poison.seen + STEPS + 3] = value
    run_options = (*SMALL, *options, "--epochs", 2, "--out", tmp_path / "run")
    line = error_of(capsys, *run_options, code=1)
    assert line == (
        "python -m fusedopt.train: the loss isn't finite at step 7, in epoch 2: training has"
        f" diverged; the checkpoint of step 4 is kept in {tmp_path / 'run'}. A smaller --lr than"
        " 0.003, or --clip-norm, may help"
    )
    a, b = read(tmp_path / "good"), read(tmp_path / "run")
    assert a["options"].pop("epochs") != b["options"].pop("epochs")
    assert_same(a, b)
    assert len(metrics(tmp_path / "run")) == 1
    assert not {"model.pt", "result.json"} & {path.name for path in (tmp_path / "run").iterdir()}


def test_without_a_folder(capsys: pytest.CaptureFixture[str], poison: Poison) -> None:
    poison[1] = math.nan
    line = error_of(capsys, *SMALL, code=1)
    assert "at step 1, in epoch 1: training has diverged; nothing is kept without --out" in line


def test_accumulated_and_frequent_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], poison: Poison
) -> None:
    poison[3] = math.inf  # the first of two in the second step
    options = (*SMALL, "--accumulate", 2, "--checkpoint-every", 1, "--out", tmp_path)
    assert "at step 2, in epoch 1" in error_of(capsys, *options, code=1)
    assert read(tmp_path)["step"] == 1


def test_resumed_into_another_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], poison: Poison
) -> None:
    train(*SMALL, "--epochs", 1, "--out", tmp_path / "a")
    poison[poison.seen + 1] = math.nan
    given = ("--resume", tmp_path / "a", "--epochs", 2, "--out", tmp_path / "b")
    line = error_of(capsys, *given, code=1)
    kept = f"the checkpoint of step 4 is kept in {tmp_path / 'b'}"
    assert f"at step 5, in epoch 2: training has diverged; {kept}" in line
    assert read(tmp_path / "a")["step"] == read(tmp_path / "b")["step"] == 4


def test_a_learning_rate_that_is_too_large(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is put in here: weights grow until the loss is infinite."""
    options = (*SMALL, "--optimizer", "sgd", "--lr", 1e30, "--out", tmp_path)
    assert "at step 2, in epoch 1: training has diverged" in error_of(capsys, *options, code=1)
    assert all(t.isfinite().all() for t in read(tmp_path)["model"].values())


def test_weights_to_begin_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(*SMALL, "--epochs", 1, "--out", tmp_path / "run")
    content = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    content["model"]["fc1.bias"][0] = math.nan
    torch.save(content, tmp_path / "nan.pt")
    given = (*SMALL, "--init", tmp_path / "nan.pt")
    line = error_of(capsys, *given, "--out", tmp_path / "new", code=1)
    assert line.endswith("the weights that training begins with aren't finite")
    assert not (tmp_path / "new" / "checkpoint.pt").exists()
    assert "the loss isn't finite at step 1" in error_of(capsys, *given, code=1)


def put_in(where: str, value: float, patch: pytest.MonkeyPatch) -> None:
    """Puts a number among those of a checkpoint after the second step."""
    after_step = guard.Guard.after_step

    def put_in_then(self: guard.Guard) -> None:
        state = self._state
        if state.step == 2:
            state.model.register_buffer("extra", torch.zeros(2))
            tensor = {
                "parameter": next(state.model.parameters()),
                "buffer": state.model.extra,
                "state": next(iter(state.optimizer.state.values()))["exp_avg"],
                "average": next(state.ema.parameters()),
            }[where]
            tensor.detach().view(-1)[1] = value
        after_step(self)

    patch.setattr(guard.Guard, "after_step", put_in_then)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("parameter", math.nan), ("parameter", -math.inf), ("buffer", math.nan),
        ("state", math.nan), ("average", math.nan),
    ],
)  # fmt: skip
def test_weights_that_are_not_finite_are_not_saved(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
    value: float,
) -> None:
    """Gradients can be NaN where the loss isn't, and then only the next loss shows it."""
    put_in(where, value, monkeypatch)
    options = (*SMALL, "--epochs", 1, "--checkpoint-every", 1, "--ema", 0.9, "--out", tmp_path)
    line = error_of(capsys, *options, code=1)
    assert "the weights aren't finite after step 2: training has diverged" in line
    assert f"the checkpoint of step 1 is kept in {tmp_path}" in line
    assert read(tmp_path)["step"] == 1


def test_infinity_among_the_buffers_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask of attention may hold minus infinity."""
    put_in("buffer", -math.inf, monkeypatch)
    train(*SMALL, "--epochs", 1, "--ema", 0.9, "--out", tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_validation_loss(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    value: float,
) -> None:
    figures = iter([loop.Figures(1.0, 0.5), loop.Figures(value, 0.5)])
    monkeypatch.setattr(run, "evaluate", lambda *arguments: next(figures))
    line = error_of(capsys, *SMALL, "--epochs", 3, "--out", tmp_path, code=1)
    assert f"the validation loss is {value} after epoch 2, step 8: training has diverged" in line
    assert (read(tmp_path)["epoch"], len(metrics(tmp_path))) == (1, 1)


def test_a_gpus_loss_is_looked_at_now_and_then(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    poison: Poison,
) -> None:
    """Before each checkpoint, too, and the first step that had it is named."""
    monkeypatch.setattr(guard, "LOOK_EVERY", 3)
    monkeypatch.setattr(guard.Guard, "_looks_always", lambda self: False)
    poison[1] = math.nan
    line = error_of(capsys, *SMALL, "--out", tmp_path / "a", code=1)
    assert "the loss isn't finite at step 1, in epoch 1" in line
    monkeypatch.setattr(guard, "LOOK_EVERY", 1000)
    poison[poison.seen + 3] = math.nan  # found at the end of the epoch
    line = error_of(capsys, *SMALL, "--out", tmp_path / "b", code=1)
    assert "the loss isn't finite at step 3, in epoch 1" in line


def test_an_overflow_of_scaled_gradients_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """GradScaler leaves the step out, and the loss was finite."""
    make = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, **k: make(device, 2.0**60, **k))
    assert len(train(*SMALL, "--epochs", 1, "--precision", "fp16").rows) == 1


def test_compare_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    poison: Poison,
) -> None:
    """That one has diverged is a result; and so it is when the command is repeated."""
    drawn: list[Any] = []
    monkeypatch.setattr(compare, "draw_comparison", lambda *given: drawn.append(given[2]))
    options = ("--model", "lenet", "--threads", 1, *SMALL, "--epochs", 1, "--seeds", 1)
    options += ("--optimizers", "sgd,adam", "--impl", "fusedopt", "--out", tmp_path)
    for _ in range(2):
        poison[poison.seen + 2] = math.nan
        main(["compare", *map(str, options)])
    sgd, adam = (tmp_path / "compare.csv").read_text().splitlines()[1:]
    assert sgd == "sgd,fusedopt,0 of 1,diverged at step 2,-,-,-,-,-,-"
    assert adam.startswith("adam,fusedopt,1,") and "diverged" not in adam
    assert drawn == [{("sgd", "fusedopt")}] * 2
    assert "the loss isn't finite at step 2" in capsys.readouterr().out
    assert read(tmp_path / "sgd-fusedopt-seed0")["step"] == 0


def test_compare_says_which_seeds_have_diverged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    poison: Poison,
) -> None:
    """The others have a mean."""
    monkeypatch.setattr(compare, "draw_comparison", lambda *given: None)
    options = ("--model", "lenet", "--threads", 1, *SMALL, "--epochs", 1, "--seeds", 3)
    poison[poison.seen + STEPS + 2] = math.nan
    given = (*options, "--optimizers", "sgd", "--impl", "fusedopt", "--out", tmp_path)
    main(["compare", *map(str, given)])
    (sgd,) = (tmp_path / "compare.csv").read_text().splitlines()[1:]
    assert sgd.startswith("sgd,fusedopt,2 of 3,") and " ± " in sgd
    assert "sgd, fusedopt, seed 1: diverged at step 2" in capsys.readouterr().out
