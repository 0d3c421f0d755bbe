"""The training script with several processes, and started by torchrun."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("tensorboard", reason="the training script needs fusedopt[train]")

import train_ranks
from ranks import Ranks, groups
from test_train_resume import FULL, assert_same_run
from train_folder_files import SMALL_IMAGES, cut_off, write_folder
from train_runs import SMALL, assert_same, error_of, metrics, read
from train_runs import train as train_alone

Run = Callable[..., list[str]]
LENET = ("--model", "lenet", "--threads", 1)
# 40 images in batches of 16, 16 and 8, which two and four processes can share evenly. Sums in
# another order differ by float32's rounding, some 1e-7, in a few steps.
SAME = ("--per-class", 4, "--batch-size", 16, "--augment", "none", "--optimizer", "sgd",
        "--scheduler", "exponential")  # fmt: skip


@pytest.fixture(scope="module")
def ranks() -> Iterator[Callable[[int], Ranks]]:
    with groups() as get:
        yield get


@pytest.fixture
def train(ranks: Callable[[int], Ranks]) -> Run:
    """Trains in so many processes, and returns what each printed."""

    def run(world: int, *options: object) -> list[str]:
        model = () if "--resume" in options else LENET
        results = ranks(world).run(train_ranks.train, *model, *options)
        assert {status for status, _ in results} == {0}, results
        return [text for _, text in results]

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pt", weights_only=True)["model"]


def assert_close(a: Path, b: Path) -> None:
    torch.testing.assert_close(weights(a), weights(b), rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(metrics(a), metrics(b), strict=True):
        for name in ours:
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-4), name


def test_processes_equal_one_with_the_whole_batch(train: Run, tmp_path: Path) -> None:
    """And strategies each other, bit for bit: of two numbers the sum has no order."""
    folders = {name: tmp_path / name for name in ("ddp", "fsdp", "zero", "alone")}
    train_alone(*SAME, "--epochs", 2, "--out", folders["alone"])
    for strategy in ("ddp", "fsdp", "zero"):
        output = train(2, *SAME, "--epochs", 2, "--strategy", strategy, "--out", folders[strategy])
        assert f"2 processes, {strategy}" in output[0] and "test accuracy" in output[0]
        assert output[1] == ""
        assert_same(weights(folders[strategy]), weights(folders["ddp"]))
        assert metrics(folders[strategy]) == metrics(folders["ddp"])
    assert_close(folders["ddp"], folders["alone"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero"])
def test_resuming_bit_for_bit(
    train: Run, ranks: Callable[[int], Ranks], tmp_path: Path, strategy: str
) -> None:
    """In the middle of an epoch: each process gets its own images and generators back."""
    options = (*FULL, "--strategy", strategy, "--epochs", 2)
    train(2, *options, "--out", tmp_path / "whole")
    ranks(2).run(train_ranks.train_until, 5, *LENET, *options, "--out", tmp_path / "parts")
    assert (read(tmp_path / "parts")["epoch"], read(tmp_path / "parts")["batch"]) == (1, 2)
    train(2, "--strategy", strategy, "--resume", tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_checkpoints_are_for_any_number_of_processes(train: Run, tmp_path: Path) -> None:
    train_alone(*SAME, "--epochs", 3, "--out", tmp_path / "alone")
    parts = tmp_path / "parts"
    train(2, *SAME, "--epochs", 1, "--strategy", "fsdp", "--out", parts)
    assert "continues after 1 epoch and" in train(4, "--epochs", 2, "--resume", parts)[0]
    train_alone("--epochs", 3, "--resume", parts)
    assert_close(parts, tmp_path / "alone")
    assert read(parts)["optimizer"].keys() == read(tmp_path / "alone")["optimizer"].keys()


def test_bad_options_are_said_once(
    ranks: Callable[[int], Ranks], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_alone("--epochs", 1, *SMALL, "--out", tmp_path)
    capsys.readouterr()
    for options, message in (
        (["--batch-size", 15], "--batch-size: 15 images can't be shared by 2 processes"),
        (["--out", tmp_path], f"--out: {tmp_path} holds a run"),
    ):
        first, second = ranks(2).run(train_ranks.train, *LENET, "--per-class", 5, *options)
        assert first[0] == 2 and message in first[1]
        assert second == (2, "")
    assert "which torchrun starts" in error_of(capsys, "--strategy", "fsdp")


def test_sharding_changes_no_learning_rates(ranks: Callable[[int], Ranks]) -> None:
    options = ("--model", "alexnet", "--lr-decay-by-depth", 0.5)
    whole = train_ranks.groups(*options)
    assert len(whole) == 8
    assert ranks(2).run(train_ranks.groups, *options, "--strategy", "fsdp") == [whole, whole]


def test_what_zero_exchanges_is_no_time_of_the_optimizers(
    train: Run, ranks: Callable[[int], Ranks]
) -> None:
    assert ranks(2).run(train_ranks.exchange_parameters) == [(["begin", "end"], [0.5] * 4)] * 2
    first, _ = train(2, *SAME, "--epochs", 1, "--strategy", "zero")
    assert "step + zero_grad; exchanging the parameters is not counted)" in first


def test_the_moving_average_of_shards_and_statistics(train: Run, tmp_path: Path) -> None:
    options = ("--model", "resnet20", *SAME, "--epochs", 1, "--ema", 0.5)
    for strategy in ("ddp", "fsdp"):
        train(2, *options, "--strategy", strategy, "--out", tmp_path / strategy)
    torch.testing.assert_close(weights(tmp_path / "ddp"), weights(tmp_path / "fsdp"))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_nan_in_one_process_stops_all(
    ranks: Callable[[int], Ranks], tmp_path: Path, strategy: str
) -> None:
    """At the same step, with a checkpoint that none of it has reached."""
    options = (*LENET, *SAME, "--epochs", 2, "--checkpoint-every", 1, "--strategy", strategy)
    first, second = ranks(2).run(train_ranks.train_poisoned, 1, 5, *options, "--out", tmp_path)
    assert first[0] == 1 and second == (1, "")
    assert "the loss isn't finite at step 5, in epoch 2" in first[1]
    assert f"the checkpoint of step 4 is kept in {tmp_path}" in first[1]
    content = read(tmp_path)
    assert content["step"] == 4 and all(t.isfinite().all() for t in content["model"].values())


@pytest.mark.parametrize("option", ["--class-weights", "--sampler"])
def test_balanced_classes_in_several_processes(train: Run, tmp_path: Path, option: str) -> None:
    """The same images with the same weights as in one process."""
    for name, count in (("cat", 24), ("cow", 10), ("dog", 6)):
        write_folder(tmp_path / "data", count, (name,))
    options = ("--data", f"folder:{tmp_path / 'data'}", *SMALL_IMAGES, *SAME[4:], "--epochs", 2)
    options += (option, "balanced", "--accumulate", 2)
    train_alone(*options, "--out", tmp_path / "alone")
    train(2, *options, "--out", tmp_path / "two")
    assert_close(tmp_path / "alone", tmp_path / "two")


def test_images_in_several_processes(
    train: Run, ranks: Callable[[int], Ranks], tmp_path: Path
) -> None:
    """One says what is in the folder, which is bad, and what changed; all have the same split."""
    root, folder = write_folder(tmp_path / "data"), tmp_path / "run"
    for name in ("cat", "dog"):
        cut_off(root / name / "3.png")
    options = ("--data", f"folder:{root}", *SMALL_IMAGES, "--epochs", 1, "--download")
    first, second = ranks(2).run(train_ranks.train, *LENET, *options, "--out", folder)
    assert first[0] == 1 and "2 of 20 images can't be read" in first[1] and second == (1, "")
    output = train(2, *options, "--skip-bad-images", "--out", folder)
    assert "2 of 20 images can't be read, and are left out" in output[0] and output[1] == ""
    moved = root.rename(tmp_path / "moved")
    (moved / "cat" / "5.png").unlink()
    (moved / "cat" / "6.png").touch()
    resume = ("--resume", folder, "--epochs", 2, "--data", f"folder:{moved}")
    output = train(2, *resume)
    assert "1 image is gone since the checkpoint: cat/5.png" in output[0] and output[1] == ""
    first, second = ranks(2).run(train_ranks.train, "--resume", folder, "--data", f"folder:{root}")
    assert first[0] == 2 and f"there is no folder {root}" in first[1] and second == (2, "")


def test_few_images_and_one_process_of_torchrun(train: Run) -> None:
    train(2, "--classes", "0,1", "--per-class", 1, "--epochs", 1)
    assert "test accuracy" in train(1, *SMALL, "--epochs", 1, "--strategy", "fsdp")[0]


def start_torchrun(log: Path, *options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    with log.open("w") as output:
        return subprocess.Popen(
            [*command, *map(str, options)],
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def workers_of(agent: int) -> list[int]:
    children = Path(f"/proc/{agent}/task/{agent}/children")
    return [int(pid) for pid in children.read_text().split()]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc")
def test_a_killed_rank_ends_the_job_or_restarts_it(train: Run, tmp_path: Path) -> None:
    """Once it is restarted and goes on from the last checkpoint; the second time it is an error."""
    folder, log = tmp_path / "run", tmp_path / "log"
    options = (*LENET, *SMALL, "--epochs", 2000, "--out", folder)
    job = start_torchrun(log, "--max-restarts", 1, "-m", "fusedopt.train", *options)

    def continued() -> list[int]:
        return [int(n) for n in re.findall(r"continues after (\d+) epochs?", log.read_text())]

    def trained() -> int:
        return len(metrics(folder)) if (folder / "metrics.csv").exists() else 0

    # Epochs pass between the look at how many there are and the kill, so that only the run
    # itself says where it went on.
    try:
        wait_for(lambda: trained() >= 3)
        os.kill(workers_of(job.pid)[-1], signal.SIGKILL)
        wait_for(lambda: continued() and trained() >= continued()[0] + 3)
        os.kill(workers_of(job.pid)[-1], signal.SIGKILL)
        assert job.wait(timeout=120) != 0
    finally:
        job.terminate()
    (first,) = continued()
    assert first >= 3
    # What was left is as if nothing had happened.
    epochs = read(folder)["epoch"]
    assert epochs >= first + 3
    train(2, *SMALL, "--epochs", epochs, "--out", tmp_path / "whole")
    train(2, "--epochs", epochs, "--resume", folder)
    assert_same(weights(tmp_path / "whole"), weights(folder))
