"""Transfer learning and fine-tuning with the training script."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("tensorboard", reason="the training script needs fusedopt[train]")

from train_runs import SMALL, error_of, no_chart, short_measurement, train  # noqa: F401


def test_transfer_beats_training_from_scratch(tmp_path: Path) -> None:
    """From digits 0-4 to 5-9, of which 10 each are shown; all by the same recipe.

    One run's accuracy depends on its seed, and as much on the kernels that the processor gets: with
    a standard deviation of 0.12 from scratch and 0.06 tuned. Eight seeds see a gain of 0.28.
    """
    recipe = ("--optimizer", "sgd", "--lr", 0.02, "--scheduler", "cosine", "--epochs", 10)
    few = (*recipe, "--classes", "5-9", "--per-class", 10, "--batch-size", 10)
    ways: dict[str, tuple] = {"scratch": (), "tuned": (), "by depth": ("--lr-decay-by-depth", 0.7)}
    accuracy = dict.fromkeys(["pretrained", *ways], 0.0)
    seeds = range(8)
    for seed in seeds:
        trained = tmp_path / str(seed)
        pretrained = train("--classes", "0-4", "--epochs", 10, "--seed", seed, "--out", trained)
        accuracy["pretrained"] += pretrained.test.accuracy / len(seeds)
        for way, options in ways.items():
            init = () if way == "scratch" else ("--init", trained, "--new-head")
            result = train(*few, *init, *options, "--seed", seed)
            accuracy[way] += result.test.accuracy / len(seeds)
    assert accuracy["pretrained"] > 0.9
    assert accuracy["tuned"] > accuracy["scratch"] + 0.1
    assert accuracy["by depth"] > accuracy["scratch"] + 0.1


def test_a_frozen_backbone_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ("--model", "resnet20", "--per-class", 4, "--batch-size", 10, "--epochs", 1)
    train(*options, "--classes", "0-4", "--out", tmp_path)
    before = torch.load(tmp_path / "model.pt", weights_only=True)["model"]
    options = (*options, "--classes", "5-9", "--init", tmp_path, "--new-head")
    model = train(*options, "--freeze", "backbone").model
    after = model.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"fc.weight", "fc.bias"}  # batch norm's statistics are the same, too
    with_gradients = {name for name, p in model.named_parameters() if p.requires_grad}
    assert with_gradients == changed
    assert "325 of them trained" in capsys.readouterr().out
    # Without --freeze all of it changes, but by little.
    tuned = train(*options).model.state_dict()
    assert not any(torch.equal(tuned[name], before[name]) for name in after)


def test_init_takes_all_weights_without_a_new_head(tmp_path: Path) -> None:
    first = train(*SMALL, "--epochs", 1, "--out", tmp_path)
    again = train(*SMALL, "--epochs", 1, "--lr", 0, "--init", tmp_path / "model.pt")
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first.test == again.test


def test_init_takes_what_was_validated_best(tmp_path: Path) -> None:
    """An unfinished run's folder has only its checkpoint, with several sets of weights."""
    result = train(*SMALL, "--epochs", 2, "--ema", 0.5, "--out", tmp_path)
    (tmp_path / "model.pt").unlink()
    again = train(*SMALL, "--epochs", 1, "--lr", 0, "--init", tmp_path)
    for a, b in zip(result.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_weights_for_other_classes_are_remarked_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many classes, but others: the last layer may be meant for them, or not."""
    train(*SMALL, "--classes", "0-4", "--epochs", 1, "--out", tmp_path)
    capsys.readouterr()
    options = (*SMALL, "--epochs", 1, "--init", tmp_path)
    train(*options, "--classes", "5-9")
    remark = (
        f"--init: {tmp_path} was trained for the classes 0, 1, 2, 3, 4, and its last layer is kept"
        " for 5, 6, 7, 8, 9; --new-head gives the network a fresh one"
    )
    assert remark in capsys.readouterr().out.splitlines()
    train(*options, "--classes", "5-9", "--new-head")
    train(*options, "--classes", "0-4")
    assert "its last layer is kept" not in capsys.readouterr().out


def test_freezing_what_has_learnt_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, *SMALL, "--freeze", "backbone")
    assert line.endswith(
        "error: --freeze: the backbone of a fresh network has learnt nothing; give --init or"
        " --pretrained as well"
    )


def test_bad_init_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(*SMALL, "--classes", "0-4", "--epochs", 1, "--out", tmp_path)
    plain = tmp_path / "plain.pt"
    torch.save(nn.Linear(1, 1).state_dict(), plain)
    for given, message in (
        ((), f"--init: {tmp_path} knows 5 classes, the data have 10; --new-head replaces"),
        (("--model", "resnet20"), f"--init: {tmp_path} has weights for --model lenet"),
        (("--image-size", 20, "--new-head"), f"--init: {tmp_path} doesn't fit the data's images"),
        (("--init", plain), f"--init: {plain} is not a checkpoint of this script"),
    ):
        assert message in error_of(capsys, *SMALL, "--init", tmp_path, *given)
