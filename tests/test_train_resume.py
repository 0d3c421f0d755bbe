"""Checkpoints of the training script: a run that was stopped anywhere ends as one that wasn't."""

from __future__ import annotations

import math
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("tensorboard", reason="the training script needs fusedopt[train]")

import train_kills
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

from fusedopt.train import checkpoint, cli, folder, loop, world
from fusedopt.train.models.lenet import LeNet

# A moving average, a scaler, a scheduler that goes by steps, accumulation and early stopping:
# everything that has a state.
FULL = (*SMALL, "--ema", 0.9, "--precision", "fp16", "--scheduler", "one-cycle", "--patience", 9,
        "--accumulate", 2, "--checkpoint-every", 1)  # fmt: skip


def scalars(folder: Path) -> list[tuple[int, float]]:
    """The training losses that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars("loss/train")]


def assert_same_run(a: Path, b: Path) -> None:
    """Asserts that two folders hold the same run, but for times."""
    assert_same(read(a), read(b))
    assert metrics(a) == metrics(b) != []
    assert scalars(a) == scalars(b)
    assert len(list((b / "tensorboard").iterdir())) == 1
    models = [torch.load(path / "model.pt", weights_only=True)["model"] for path in (a, b)]
    assert_same(*models)
    names = {path.name for path in b.iterdir()}
    assert names == {"checkpoint.pt", "config.json", "curves.png", "last.pt", "lock", "metrics.csv",
                     "model.pt", "result.json", "tensorboard"}  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_in_two_parts(tmp_path: Path, optimizer: str) -> None:
    """The second part has more epochs than the first was meant to have."""
    options = ("--optimizer", optimizer, *SMALL)
    train(*options, "--epochs", 3, "--out", tmp_path / "whole")
    train(*options, "--epochs", 1, "--out", tmp_path / "parts")
    assert read(tmp_path / "parts")["epoch"] == 1
    train("--epochs", 3, "--resume", tmp_path / "parts")
    content = read(tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert content["epoch"] == 3 and len(content["rows"]) == 3


def test_batch_norm_and_plateau_resume_too(tmp_path: Path) -> None:
    options = ("--model", "resnet20", "--per-class", 2, "--batch-size", 10)
    options += ("--scheduler", "plateau", "--scheduler-arg", "patience=0")
    train(*options, "--epochs", 2, "--out", tmp_path / "whole")
    train(*options, "--epochs", 1, "--out", tmp_path / "parts")
    train("--epochs", 2, "--resume", tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_dropout_resumes_in_the_middle_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It draws from torch's own generator."""
    forward, show, whole, parts = LeNet.forward, loop._show, tmp_path / "whole", tmp_path / "parts"

    def drop(self: LeNet, images: torch.Tensor) -> torch.Tensor:
        return F.dropout(forward(self, images), training=self.training)

    monkeypatch.setattr(LeNet, "forward", drop)
    train(*SMALL, "--epochs", 2, "--out", whole)
    batches = iter(range(99))
    with monkeypatch.context() as patch:
        patch.setattr(
            loop,
            "_show",
            lambda *a: next(batches) == 5 and signal.raise_signal(signal.SIGINT) or show(*a),
        )
        error_of(capsys, *SMALL, "--epochs", 2, "--out", parts, code=130)
    assert read(parts)["batch"] == 2
    train("--resume", parts)
    assert_same_run(whole, parts)


@pytest.mark.parametrize("scheduler", ["multistep", "cosine-restarts", "cyclic", "cosine"])
def test_schedulers_resume(tmp_path: Path, scheduler: str) -> None:
    arguments = {
        "multistep": ["milestones=[1,2]"],
        "cosine-restarts": ["T_0=2"],
        "cyclic": ["base_lr=0.01", "max_lr=0.1"],
        "cosine": ["T_max=3"],
    }[scheduler]
    options = ("--scheduler", scheduler, "--per-class", 2, "--optimizer", "sgd")
    options += tuple(x for argument in arguments for x in ("--scheduler-arg", argument))
    train(*options, "--epochs", 3, "--out", tmp_path / "whole")
    train(*options, "--epochs", 1, "--out", tmp_path / "parts")
    train("--epochs", 3, "--resume", tmp_path / "parts")
    assert_same(read(tmp_path / "whole"), read(tmp_path / "parts"))


def test_a_cosine_ends_with_the_epochs_that_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without other epochs a resumed run has the same bits; with others, the rest of a cosine."""
    options = ("--per-class", 5, "--batch-size", 16, "--lr", 0.001, "--warmup", 0.5)
    train(*options, "--epochs", 4, "--checkpoint-every", 5, "--out", tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        epochs, record = iter(range(9)), folder.RunFolder.record

        def stop(self: folder.RunFolder, rows: Any) -> None:
            record(self, rows)
            if next(epochs) == 1:
                raise KeyboardInterrupt

        patch.setattr(folder.RunFolder, "record", stop)
        error_of(capsys, *options, "--epochs", 4, "--out", tmp_path / "parts", code=130)
    train("--resume", tmp_path / "parts", "--checkpoint-every", 5)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    rows = train("--resume", tmp_path / "parts", "--epochs", 8).rows
    assert "was made for 4 epochs and now ends with 8: the learning rate goes on with" in (
        capsys.readouterr().out
    )
    total, warm = 8 * 4, 2
    lrs = [
        0.0005 * (1 + math.cos(math.pi * (4 * epoch - warm) / (total - warm)))
        for epoch in range(5, 9)
    ]
    assert [row["lr"] for row in rows[:4]][-1] == pytest.approx(0, abs=1e-12)
    assert [row["lr"] for row in rows[4:]] == pytest.approx(lrs, abs=1e-12)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Whatever was being written: the run goes on, and ends with the bits of one never killed."""
    options = list(map(str, ("--model", "lenet", *FULL, "--epochs", 3)))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(*options[2:], "--out", whole)
    rng = random.Random(5)
    deaths = 0
    for attempt in range(40):
        resume = (killed / "checkpoint.pt").exists()
        how = ["--resume", str(killed)] if resume else [*options, "--out", str(killed)]
        # Six times by what is being written, then at moments that the clock decides.
        event = rng.randrange(1, 36) if attempt < 6 else 0
        process = train_kills.start(train_kills.train_until, event, killed, how)
        if not event:
            process.join(rng.uniform(0.05, 0.1 * attempt))
            process.kill()
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        deaths += 1
    assert process.exitcode == 0 and deaths >= 5
    assert_same_run(whole, killed)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    """In the middle of an epoch, with workers that get the signal too."""
    options = list(map(str, ("--model", "lenet", *SMALL, "--epochs", 2, "--workers", 1)))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(*options[2:], "--out", whole)
    process = train_kills.start(train_kills.train_with_ctrl_c, 6, [*options, "--out", str(parts)])
    process.join(60)
    lines = (tmp_path / "stderr").read_text().strip().splitlines()
    assert process.exitcode == 130
    assert lines == [
        "stopping after this step; Ctrl-C again stops at once",
        "interrupted after 1 epoch and 2 batches; to go on: "
        f"python -m fusedopt.train --resume {parts}",
    ]
    assert (read(parts)["epoch"], read(parts)["batch"]) == (1, 2)
    assert len(metrics(parts)) == 1
    train("--resume", parts)
    assert_same_run(whole, parts)


def test_ctrl_c_without_a_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(loop, "_show", lambda *_: signal.raise_signal(signal.SIGINT))
    line = error_of(capsys, *SMALL, code=130)
    assert line == "interrupted after 0 epochs and 1 batch; nothing is kept without --out FOLDER"
    assert signal.getsignal(signal.SIGINT) is handler


def test_resume_with_the_other_implementation(tmp_path: Path) -> None:
    train("--epochs", 1, "--impl", "torch", *SMALL, "--out", tmp_path / "mixed")
    train("--epochs", 2, "--impl", "fusedopt", "--resume", tmp_path / "mixed")
    train("--epochs", 2, *SMALL, "--out", tmp_path / "ours")
    for key, value in read(tmp_path / "ours")["model"].items():
        other = read(tmp_path / "mixed")["model"][key]
        torch.testing.assert_close(other, value, rtol=1e-4, atol=1e-5)


def test_a_finished_run_only_gets_tested(tmp_path: Path) -> None:
    first = train("--epochs", 2, "--patience", 1, "--lr", 0.1, *SMALL, "--out", tmp_path)
    before = read(tmp_path)
    again = train("--resume", tmp_path)
    assert again.test == first.test and again.rows == first.rows
    assert_same(read(tmp_path), before)


def test_resuming_into_another_folder_leaves_the_first(tmp_path: Path) -> None:
    train("--epochs", 1, *SMALL, "--out", tmp_path / "a")
    before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir() if path.is_file()}
    train("--epochs", 2, "--resume", tmp_path / "a", "--out", tmp_path / "b")
    assert all(path.read_bytes() == content for path, content in before.items())
    assert read(tmp_path / "b")["epoch"] == 2 and len(metrics(tmp_path / "b")) == 2


def test_a_restart_goes_on_in_the_folder_that_it_writes_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where --resume names another one; but not before there is a checkpoint."""
    first, second = tmp_path / "first", tmp_path / "second"
    train(*SMALL, "--epochs", 1, "--out", first)
    monkeypatch.setattr(world, "restarted", lambda: True)
    command = ["--resume", str(first), "--epochs", "2", "--out", str(second)]
    assert cli.parse(cli.make_parser(), command)[0].resume == first
    train("--resume", first, "--epochs", 2, "--out", second)
    options, content = cli.parse(cli.make_parser(), command)
    assert (options.resume, options.out, content["epoch"]) == (second, second, 2)


def test_measuring_costs_leaves_the_trained_model_alone(tmp_path: Path) -> None:
    result = train("--model", "resnet20", "--epochs", 1, *SMALL, "--out", tmp_path)
    assert_same(dict(read(tmp_path)["model"]), dict(result.model.state_dict()))


def test_a_full_disk_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train("--epochs", 1, *SMALL, "--out", tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def save_half(content: object, file: Any) -> None:
        file.write(before[: len(before) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", save_half)
    line = error_of(capsys, "--epochs", 2, "--resume", tmp_path)
    assert "--out: cannot write" in line and "No space left on device" in line
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


def test_folders_in_use_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    train("--epochs", 1, *SMALL, "--out", tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    line = error_of(capsys, "--out", tmp_path, *SMALL)
    assert line.endswith(f"--out: {tmp_path} holds a run; --resume {tmp_path} continues it")
    with (tmp_path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = error_of(capsys, "--epochs", 2, "--resume", tmp_path)
    assert line.endswith(f"--out: another process is writing to {tmp_path}")
    changed = [path for path in files if path.stat().st_mtime_ns != files[path]]
    assert [path.name for path in changed] in ([], ["lock"])


def test_bad_checkpoints_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, bad = tmp_path / "run", tmp_path / "bad"
    options = (*SMALL, "--scheduler", "polynomial")
    train("--epochs", 2, *options, "--out", path)
    bad.mkdir()
    for given, message in (
        (["--epochs", 1], "has done 2 epochs, --epochs is fewer"),
        (["--epochs", 3], f"--scheduler polynomial of {path} was made for --epochs 2, not 3"),
        (["--warmup", 1], f"{path} was trained with --warmup 0.0 (not 1.0)"),
        (["--optimizer", "sgd", "--lr", 0.003],
         f"{path} was trained with --optimizer adamw (not sgd), --momentum None (not 0.9)"),
        (["--model", "resnet20"], f"{path} was trained with --model lenet (not resnet20)"),
        (["--classes", "0-4"], f"{path} was trained with --classes None (not (0, 1, 2, 3, 4))"),
        (["--scheduler-arg", "T_max=3"], f"{path} was trained with --scheduler-arg () (not"),
    ):  # fmt: skip
        assert message in error_of(capsys, "--resume", path, *given)

    file = bad / "checkpoint.pt"
    whole = (path / "checkpoint.pt").read_bytes()
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2]):
        file.write_bytes(content)
        assert f"{file} is damaged, or not a checkpoint" in error_of(capsys, "--resume", bad)
    for other in ({"model": {}}, [1, 2], torch.zeros(3)):
        torch.save(other, file)
        assert f"{file} is not a checkpoint of this script" in error_of(capsys, "--resume", bad)
    content = torch.load(path / "checkpoint.pt")
    for key in ("model", "optimizer", "scheduler", "generator", "epoch", "rows", "images"):
        torch.save({k: v for k, v in content.items() if k != key}, file)
        assert f"{bad} is damaged: '{key}'" in error_of(capsys, "--resume", bad)
    assert [p.name for p in bad.iterdir()] == ["checkpoint.pt"]


def test_a_run_that_another_process_went_on_with_meanwhile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has reached isn't replaced by less."""
    run, read_one = tmp_path / "run", checkpoint.read
    train(*SMALL, "--epochs", 1, "--out", run)

    def read_and_go_on(path: Path, flag: str) -> Any:
        content = read_one(path, flag)
        later = run / "later"
        later.write_bytes((run / "checkpoint.pt").read_bytes())
        later.replace(run / "checkpoint.pt")
        return content

    monkeypatch.setattr(checkpoint, "read", read_and_go_on)
    line = error_of(capsys, "--resume", run, "--epochs", 2)
    assert line.endswith(f"another process has gone on with {run}: start this again")


def test_a_folder_whose_name_is_not_utf_8(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_of(capsys, *SMALL, "--out", tmp_path / "n\udce9")
    assert "is no name in UTF-8" in line
    assert list(tmp_path.iterdir()) == []
