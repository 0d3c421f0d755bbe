"""What comes out of a run is its best epoch; the last one is kept beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("tensorboard", reason="the training script needs fusedopt[train]")

from train_runs import (  # noqa: F401
    SMALL,
    assert_same,
    no_chart,
    read,
    short_measurement,
    train,
)

from fusedopt.train import checkpoint, loop, run
from fusedopt.train.recipe import EarlyStopping

# Of each epoch, and of the test: loss and accuracy. The second epoch is the best.
FIGURES = [(1.0, 0.8), (0.9, 0.9), (0.5, 0.7), (2.0, 0.6)]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The weights that were validated or tested, whose figures are those above."""
    weights: list[dict[str, torch.Tensor]] = []

    def evaluate(model: torch.nn.Module, *others: object) -> loop.Figures:
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        return loop.Figures(*FIGURES[min(len(weights), len(FIGURES)) - 1])

    monkeypatch.setattr(run, "evaluate", evaluate)
    return weights


def saved(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_both_are_kept_and_the_choice_is_said(
    tmp_path: Path, seen: list[Any], capsys: pytest.CaptureFixture[str], keep: str
) -> None:
    result = train(*SMALL, "--epochs", 3, "--keep", keep, "--out", tmp_path)
    chosen, other = (1, 2) if keep == "best" else (2, 1)
    assert_same(dict(result.model.state_dict()), seen[chosen])
    assert_same(seen[3], seen[chosen])  # what is tested
    model = saved(tmp_path / "model.pt")
    beside = saved(tmp_path / ("last.pt" if keep == "best" else "best.pt"))
    assert_same(model["model"], seen[chosen])
    assert_same(beside["model"], seen[other])
    assert (model["epoch"], beside["epoch"]) == (chosen + 1, other + 1)
    content = json.loads((tmp_path / "result.json").read_text())
    assert content["epoch"] == chosen + 1
    figures = "with validation accuracy 90.0% and loss 0.9000"
    kept = f"network is tested and kept, in {tmp_path / 'model.pt'}"
    line = {
        "best": f"the best epoch is 2, {figures}: its {kept}; last.pt has that of epoch 3",
        "last": f"the last epoch's {kept}; best.pt has that of epoch 2, {figures}",
    }[keep]
    assert line in capsys.readouterr().out.splitlines()


def test_without_a_folder(seen: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    train(*SMALL, "--epochs", 3)
    line = (
        "the best epoch is 2, with validation accuracy 90.0% and loss 0.9000: its network is tested"
    )
    assert line in capsys.readouterr().out.splitlines()


def test_by_loss(tmp_path: Path, seen: list[Any]) -> None:
    train(*SMALL, "--epochs", 3, "--monitor", "loss", "--out", tmp_path)
    assert saved(tmp_path / "model.pt")["epoch"] == 3
    assert saved(tmp_path / "last.pt")["epoch"] == 3


def test_of_equal_accuracies_the_smaller_loss_is_better() -> None:
    model, stopping = torch.nn.Linear(1, 1), EarlyStopping(None, "accuracy")
    for epoch, loss in enumerate([0.5, 0.4, 0.45], 1):
        stopping.update(epoch, {"accuracy": 1.0, "loss": loss}, model)
    assert stopping.epoch == 2


@pytest.mark.usefixtures("seen")
def test_an_unfinished_run_gives_its_best_epoch(tmp_path: Path) -> None:
    train(*SMALL, "--epochs", 3, "--out", tmp_path)
    content = checkpoint.read(tmp_path / "checkpoint.pt", "--init")
    assert_same(checkpoint.weights_of(content), saved(tmp_path / "model.pt")["model"])


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path, seen: list[Any]) -> None:
    """As it was begun: its last epoch comes out, and its schedule stays."""
    options = ("--per-class", 5, "--batch-size", 16, "--scheduler", "cosine", "--keep", "last")
    options += ("--scheduler-interval", "epoch", "--warmup", 0, "--momentum", 0.9, "--lr", 0.05)
    options += ("--optimizer", "sgd", "--epochs", 3)
    straight = train(*options, "--out", tmp_path / "new")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_show", lambda *_: len(seen) == 5 and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(*options, "--out", tmp_path / "old")
    path = tmp_path / "old" / "checkpoint.pt"
    content = saved(path)
    for name in ("warmup", "keep", "no_cost"):
        content["options"].pop(name, None)
    content["options"] |= {"scheduler_interval": None, "monitor": "loss"}
    del content["stopping"]["loss"]
    content["stopping"]["weights"] = None
    torch.save(content, path)
    resumed = train("--resume", tmp_path / "old")
    assert_same(dict(resumed.model.state_dict()), dict(straight.model.state_dict()))
    assert [row["lr"] for row in resumed.rows] == [row["lr"] for row in straight.rows]
    assert read(tmp_path / "old")["options"]["keep"] == "last"
