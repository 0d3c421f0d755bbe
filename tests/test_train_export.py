"""A run's network as torch.export's program: from pixels to logits, for any number of images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("tensorboard", reason="the training script needs fusedopt[train]")

from train_runs import SMALL, error_of, no_chart, short_measurement, train  # noqa: F401

from fusedopt.train.augment import Normalize
from fusedopt.train.data import load_data


@pytest.mark.parametrize("model", ["lenet", "resnet20"])
def test_a_runs_network(tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str) -> None:
    options = ("--model", model, *SMALL, "--epochs", 2, "--no-cost", "--out", tmp_path)
    if model == "lenet":
        result = train(*options, "--export")
    else:  # one that has ended before
        train(*options)
        assert not (tmp_path / "model.pt2").exists()
        result = train("--resume", tmp_path, "--no-cost", "--export")
    assert f"{tmp_path / 'model.pt2'} takes images, uint8 (N, 1, 16, 16)" in (
        capsys.readouterr().out
    )
    extra = {"classes.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    assert json.loads(extra["classes.json"]) == list(map(str, range(10)))
    data = load_data("digits", root=tmp_path, seed=0, per_class=5)
    network, normalize = result.model.eval(), Normalize(data.mean, data.std)
    for count in (1, 7, 64):
        images = data.test.images[:count]
        torch.testing.assert_close(program(images), network(normalize(images)))


def test_it_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, *SMALL, "--export")
    assert line.endswith("error: --export: give --out, the folder to write to, as well")


def test_a_network_that_cannot_be_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was trained is kept."""

    def refuse(*arguments: object, **keywords: object) -> None:
        raise RuntimeError("data-dependent control flow\nand more")

    monkeypatch.setattr(torch.export, "export", refuse)
    line = error_of(capsys, *SMALL, "--epochs", 1, "--export", "--out", tmp_path, code=1)
    assert line.endswith("--export: lenet can't be exported: data-dependent control flow")
    assert (tmp_path / "result.json").exists() and not (tmp_path / "model.pt2").exists()
