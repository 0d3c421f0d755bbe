"""The bundled training script: its loop, checkpoints and error messages."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("tqdm", reason="the training script needs fusedopt[train]")

from fusedopt.train import checkpoint, compare, data, main, run
from fusedopt.train.cli import DEFAULTS


def train(*options: object) -> run.Result:
    """A run of LeNet, unless the options name another model."""
    return main(["--model", "lenet", "--threads", "1", *map(str, options)])


def error_of(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    """The last line that the script leaves on stderr when it refuses these options."""
    with pytest.raises(SystemExit) as exit_info:
        train(*options)
    assert exit_info.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and lines[0].startswith("usage:")
    return lines[1]


def assert_same(a: Any, b: Any) -> None:
    """Asserts that two checkpoints hold the same values, tensors bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    else:
        assert a == b


def read(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.fixture
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves few images and a short comparison, where neither accuracy nor time matters."""
    load_data = data.load_data

    def load_less(*args: Any, **kwargs: Any) -> data.Splits:
        splits = load_data(*args, **kwargs)
        names = ("train", "validation", "test")
        return replace(splits, **{name: getattr(splits, name).take(range(100)) for name in names})

    monkeypatch.setattr(data, "load_data", load_less)
    monkeypatch.setattr(compare, "ROUNDS", 1)


def test_lenet_learns_the_digits() -> None:
    result = train("--epochs", 10)
    losses = [epoch.loss for epoch in result.epochs]
    assert len(losses) == 10 and losses[-1] < 0.25 * losses[0]
    assert result.test_accuracy > 0.9
    assert 0 < result.optimizer_share < 1
    assert set(result.costs) == {"fusedopt", "torch"}


@pytest.mark.parametrize("optimizer", DEFAULTS)
def test_both_implementations_train_alike(optimizer: str) -> None:
    ours, torchs = (
        # Few steps: each ReLU and maximum that rounding tips over makes the two drift apart.
        train("--epochs", 1, "--batch-size", 256, "--optimizer", optimizer, "--impl", impl)
        for impl in ("fusedopt", "torch")
    )
    assert ours.epochs[0].loss < math.log(10) + 0.05  # what guessing costs
    assert ours.epochs[0].loss == pytest.approx(torchs.epochs[0].loss, rel=1e-4)
    for a, b in zip(ours.model.parameters(), torchs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize(
    ("model", "optimizer"), [("lenet", "adamw"), ("lenet", "sgd"), ("resnet20", "adamw")]
)
def test_resume_is_bit_for_bit(tmp_path: Path, model: str, optimizer: str) -> None:
    options = ("--model", model, "--optimizer", optimizer)
    whole, part, rest = tmp_path / "whole.pt", tmp_path / "part.pt", tmp_path / "rest.pt"
    train(*options, "--epochs", 3, "--checkpoint", whole)
    train(*options, "--epochs", 1, "--checkpoint", part)
    train(*options, "--epochs", 3, "--resume", part, "--checkpoint", rest)
    assert read(part)["epoch"] == 1
    assert_same(read(whole), read(rest))


@pytest.mark.usefixtures("small_data")
def test_resume_with_the_other_implementation(tmp_path: Path) -> None:
    part, mixed, ours = tmp_path / "part.pt", tmp_path / "mixed.pt", tmp_path / "ours.pt"
    train("--epochs", 1, "--impl", "torch", "--checkpoint", part)
    train("--epochs", 2, "--resume", part, "--checkpoint", mixed)
    train("--epochs", 2, "--checkpoint", ours)
    for key, value in read(ours)["model"].items():
        torch.testing.assert_close(read(mixed)["model"][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("small_data")
def test_a_finished_checkpoint_only_gets_tested(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    first = train("--epochs", 2, "--checkpoint", path)
    again = train("--epochs", 2, "--resume", path)
    assert again.epochs == [] and again.test_accuracy == first.test_accuracy
    assert again.optimizer_share == 0


@pytest.mark.usefixtures("small_data")
def test_the_comparison_leaves_the_trained_model_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    result = train("--model", "resnet20", "--epochs", 1, "--checkpoint", path)
    assert_same(dict(read(path)["model"]), dict(result.model.state_dict()))


@pytest.mark.usefixtures("small_data")
def test_an_interrupted_write_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.pt"
    train("--epochs", 1, "--checkpoint", path)
    before = path.read_bytes()

    def save_half(content: object, file: Any) -> None:
        file.write(before[: len(before) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.torch, "save", save_half)
    with pytest.raises(SystemExit) as exit_info:
        train("--epochs", 2, "--resume", path, "--checkpoint", path)
    assert exit_info.value.code == 130
    assert "interrupted" in capsys.readouterr().err
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("small_data")
def test_ctrl_c_in_an_epoch_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, path = tmp_path / "whole.pt", tmp_path / "run.pt"
    train("--epochs", 2, "--checkpoint", whole)
    train_epoch = run.train_epoch

    def stop_in_second(state: checkpoint.TrainingState, *others: Any) -> Any:
        epoch = train_epoch(state, *others)
        if state.epoch == 2:
            raise KeyboardInterrupt
        return epoch

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(run, "train_epoch", stop_in_second)
        train("--epochs", 2, "--checkpoint", path)
    assert read(path)["epoch"] == 1
    train("--epochs", 2, "--resume", path, "--checkpoint", path)
    assert_same(read(whole), read(path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "vgg"], "argument --model: invalid choice: 'vgg'"),
        (["--optimizer", "lion"], "argument --optimizer: invalid choice: 'lion'"),
        (["--impl", "apex"], "argument --impl: invalid choice: 'apex'"),
        (["--epochs", "0"], "argument --epochs: must be a whole number, at least 1, not 0"),
        (["--epochs", "1.5"], "argument --epochs: '1.5' is not a whole number"),
        (["--batch-size", "0"], "argument --batch-size: must be a whole number, at least 1, not 0"),
        (["--threads", "-1"], "argument --threads: must be a whole number, at least 1, not -1"),
        (["--lr", "-0.1"], "argument --lr: must be a number, at least 0, not -0.1"),
        (["--lr", "nan"], "argument --lr: must be a number, at least 0, not nan"),
        (["--lr", "inf"], "argument --lr: must be a number, at least 0, not inf"),
        (["--weight-decay", "-1"], "argument --weight-decay: must be a number, at least 0"),
        (["--gamma", "1.1"], "argument --gamma: must be a number, from 0 to 1, not 1.1"),
        (["--seed", "-1"], "argument --seed: must be a whole number, from 0 to 4294967295, not -1"),
        (["--momentum", "0.9"], "--momentum: adamw has none; sgd and rmsprop do"),
        (["--device", "tpu"], "--device: 'tpu' is not available here; 'cpu' is"),
        (["--checkpoint", "{tmp}"], "--checkpoint: {tmp} is a folder; name a file"),
        (["--checkpoint", "{tmp}/no/x"], "--checkpoint: the folder {tmp}/no doesn't exist"),
        (["--resume", "{tmp}/no.pt"], "--resume: cannot read {tmp}/no.pt: No such file"),
    ],
)
def test_bad_options_get_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    line = error_of(capsys, *(option.format(tmp=tmp_path) for option in options))
    assert f"error: {message.format(tmp=tmp_path)}" in line


@pytest.mark.usefixtures("small_data")
def test_bad_checkpoints_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, bad = tmp_path / "run.pt", tmp_path / "bad.pt"
    train("--epochs", 2, "--checkpoint", path)
    capsys.readouterr()
    assert "has done 2 epochs, --epochs is fewer" in error_of(
        capsys, "--resume", path, "--epochs", 1
    )
    line = error_of(capsys, "--resume", path, "--optimizer", "sgd", "--lr", 0.003)
    assert f"{path} was trained with --optimizer adamw (not sgd), --weight-decay 0.01" in line
    line = error_of(capsys, "--resume", path, "--model", "resnet20")
    assert f"{path} was trained with --model lenet (not resnet20)" in line

    whole = path.read_bytes()
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2]):
        bad.write_bytes(content)
        assert f"{bad} is damaged, or not a checkpoint" in error_of(capsys, "--resume", bad)
    for other in ({"model": {}}, [1, 2], torch.zeros(3)):
        torch.save(other, bad)
        assert f"{bad} is not a checkpoint of this script" in error_of(capsys, "--resume", bad)
    for key in ("model", "optimizer", "generator", "epoch"):
        torch.save({k: v for k, v in read(path).items() if k != key}, bad)
        assert f"{bad} is damaged: '{key}'" in error_of(capsys, "--resume", bad)


def test_missing_extras_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("run", "loop", "compare"):
        monkeypatch.delitem(sys.modules, f"fusedopt.train.{module}")
    monkeypatch.setitem(sys.modules, "tqdm", None)
    line = error_of(capsys, "--epochs", 1)
    assert line.endswith("training needs tqdm: pip install 'fusedopt[train]'")


def test_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "fusedopt.train", "--epochs", "1", "--model", "lenet"]
    command += ["--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "it/s" not in done.stderr  # no progress bar where nobody watches
    for text in ("epoch  1/1  loss", "test accuracy", "of training", "torch.optim.AdamW"):
        assert text in done.stdout
