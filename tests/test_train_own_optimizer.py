"""An optimizer that torch.optim doesn't have, in the training script."""

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
    error_of,
    no_chart,
    read,
    short_measurement,
    train,
)

import fusedopt
from fusedopt.optimizer import FusedOptimizer
from fusedopt.train import main, optimizers


class Heavy(FusedOptimizer):
    """SGD's kernel under a name that torch.optim doesn't have, derived from no class of torch's."""

    _kernels = "SGD"

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        defaults = {
            "lr": lr, "momentum": 0, "dampening": 0, "weight_decay": weight_decay,
            "nesterov": False, "maximize": False, "foreach": None, "differentiable": False,
            "fused": None,
        }  # fmt: skip
        super().__init__(params, defaults)


@pytest.fixture(autouse=True)
def heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusedopt, "Heavy", Heavy, raising=False)
    monkeypatch.setitem(optimizers.CLASSES, "heavy", "Heavy")
    monkeypatch.setitem(optimizers.DEFAULTS, "heavy", {"lr": 0.05, "weight_decay": 0.0})
    monkeypatch.setattr("fusedopt.train.compare.draw_comparison", lambda *arguments: None)
    assert not hasattr(torch.optim, "Heavy")


def test_a_run_ends_with_its_own_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train("--optimizer", "heavy", *SMALL, "--epochs", 2, "--out", tmp_path / "a")
    said = capsys.readouterr().out
    assert set(result.costs) == {"fusedopt"}
    assert "  fusedopt.Heavy  " in said and "torch.optim has no Heavy to compare with" in said
    costs = json.loads((tmp_path / "a" / "result.json").read_text())["costs"]
    assert set(costs) == {"fusedopt"}
    train("--optimizer", "heavy", *SMALL, "--epochs", 1, "--out", tmp_path / "b")
    train("--resume", tmp_path / "b", "--epochs", 2)
    assert_same(read(tmp_path / "a"), read(tmp_path / "b"))


def test_torchs_implementation_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_of(capsys, "--optimizer", "heavy", "--impl", "torch", "--out", tmp_path / "a")
    assert line.endswith("error: --impl torch: torch.optim has no Heavy")
    assert not (tmp_path / "a").exists()


def test_compare_leaves_torchs_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["compare", "--model", "lenet", "--threads", "1", *map(str, SMALL), "--epochs", "1"]
    given += ["--seeds", "1"]
    given += ["--out", str(tmp_path / "out")]
    main([*given, "--optimizers", "sgd,heavy"])
    lines = (tmp_path / "out" / "compare.csv").read_text().splitlines()[1:]
    pairs = [tuple(line.split(",")[:2]) for line in lines]
    assert pairs == [("sgd", "fusedopt"), ("sgd", "torch"), ("heavy", "fusedopt")]
    out = capsys.readouterr().out
    assert "heavy is left out with torch: torch.optim has no Heavy" in out
    with pytest.raises(SystemExit) as info:
        main([*given, "--optimizers", "heavy", "--impl", "torch"])
    assert info.value.code == 2
    assert "--impl torch: torch.optim has none of these optimizers" in capsys.readouterr().err
