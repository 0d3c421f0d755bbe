"""The training script on a GPU, in each precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("tensorboard", reason="the training script needs fusedopt[train]")

from train_runs import SMALL, train

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_in_two_parts(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the device that it chooses by itself; our kernels make every step."""

    def refuse(*_: object) -> None:
        raise AssertionError("torch's own step")

    monkeypatch.setattr("fusedopt.optimizer.step_by_torch", refuse)
    options = (*SMALL, "--precision", precision, "--optimizer", "adamw")
    whole = train(*options, "--epochs", 2, "--out", tmp_path / "whole")
    train(*options, "--epochs", 1, "--out", tmp_path / "parts")
    parts = train("--epochs", 2, "--resume", tmp_path / "parts")
    assert {p.device.type for p in parts.model.parameters()} == {DEVICE}
    for a, b in zip(whole.rows, parts.rows, strict=True):
        assert 0 < a["train_loss"] == pytest.approx(b["train_loss"], rel=0.01)
        assert a["optimizer_seconds"] > 0
