"""The training script as a whole: it learns, it keeps its promises, and it refuses clearly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import CLASS_CASES, with_torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("tqdm", reason="the training script needs fusedopt[train]")

from train_runs import SMALL, assert_same, error_of, short_measurement, train  # noqa: F401

from fusedopt.train import cost, loop, run
from fusedopt.train.state import StepTimer


def test_lenet_learns_the_digits() -> None:
    result = train("--epochs", 10)
    losses = [row["train_loss"] for row in result.rows]
    assert len(losses) == 10 and losses[-1] < 0.25 * losses[0]
    assert result.test.accuracy > 0.9
    for row in result.rows:
        assert 0 < row["optimizer_seconds"] < row["seconds"]
    assert set(result.costs) == {"fusedopt", "torch"}


FOR_LOOP = {"foreach": False, "fused": False}


class Shadow:
    """Steps torch's optimizer on copies of the parameters, with the same gradients.

    Two trainings drift apart: each ReLU and maximum that rounding tips over changes gradients, so
    how far depends on the kernels that the processor gets.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._params = {
            param: nn.Parameter(param.detach().clone())
            for group in optimizer.param_groups
            for param in group["params"]
        }
        groups = [
            {**group, "params": [self._params[p] for p in group["params"]], **FOR_LOOP}
            for group in optimizer.param_groups
        ]
        self._torchs = getattr(torch.optim, type(optimizer).__name__)(groups)
        self.steps = 0

    def step(self) -> None:
        """Has to run before the optimizer's own step, which sees the learning rate that it has."""
        for ours, torchs in zip(
            self.optimizer.param_groups, self._torchs.param_groups, strict=True
        ):
            torchs["lr"] = ours["lr"]
        for ours, torchs in self._params.items():
            torchs.grad = None if ours.grad is None else ours.grad.clone()
        self._torchs.step()
        self.steps += 1

    def assert_close(self) -> None:
        """Compares what both have made of the parameters."""
        for ours, torchs in self._params.items():
            torch.testing.assert_close(ours.detach(), torchs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", [c.name.lower() for c in with_torch(CLASS_CASES)])
def test_both_implementations_train_alike(optimizer: str) -> None:
    shadows: dict[Optimizer, Shadow] = {}

    def follow(stepped: Optimizer, *_: object) -> None:
        if type(stepped).__module__.startswith("fusedopt"):
            if stepped not in shadows:
                shadows[stepped] = Shadow(stepped)
            shadows[stepped].step()

    options = ("--epochs", 3, "--per-class", 20, "--batch-size", 32, "--optimizer", optimizer)
    options += ("--keep", "last")
    hook = register_optimizer_step_pre_hook(follow)
    try:
        ours = train(*options, "--impl", "fusedopt")
    finally:
        hook.remove()
    trained = max(shadows.values(), key=lambda shadow: shadow.steps)  # others measure times
    assert trained.steps > cost.WARM_UP + cost.ROUNDS
    trained.assert_close()
    torchs = train(*options, "--impl", "torch")
    for mine, other in zip(ours.rows, torchs.rows, strict=True):
        assert mine["train_loss"] == pytest.approx(other["train_loss"], rel=0.05)


def test_the_test_set_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    evaluate = loop.evaluate

    def spy(model: nn.Module, dataset: object, *others: object) -> loop.Figures:
        seen.append(dataset)
        return evaluate(model, dataset, *others)

    splits = []
    load_splits = run.load_splits
    monkeypatch.setattr(run, "evaluate", spy)
    monkeypatch.setattr(
        run, "load_splits", lambda options: splits.append(load_splits(options)) or splits[0]
    )
    train("--epochs", 3, *SMALL)
    assert seen == [splits[0].validation] * 3 + [splits[0].test]


def test_train_and_eval_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda self, x: modes.append(self.training) or x)
    train("--model", "resnet20", "--epochs", 2, *SMALL)
    norms = 19
    training, validation, test = 4, 1, 2  # batches
    measured = 2 * (cost.WARM_UP + cost.ROUNDS)
    expected = 2 * ([True] * training + [False] * validation)
    expected += [False] * test + [True] * measured
    assert modes[::norms] == expected


def test_an_odd_last_image_is_left_out() -> None:
    """Batch norm could not average it where a feature map has one pixel."""
    options = ("--epochs", 1, "--classes", "0-4", "--augment", "none")
    assert train(*options, "--per-class", 5, "--batch-size", 8).rows[0]["step"] == 3
    assert train(*options, "--per-class", 5, "--batch-size", 1).rows[0]["step"] == 25


def test_the_loaders_workers_change_nothing() -> None:
    options = ("--epochs", 1, *SMALL)
    alone, helped = train(*options), train(*options, "--workers", 1)
    assert_same(dict(alone.model.state_dict()), dict(helped.model.state_dict()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "vgg"], "--model vgg: there is no model 'vgg'"),
        (["--data", "imagenet"], "--data imagenet: there is no data set 'imagenet'"),
        (["--optimizer", "lamb"], "argument --optimizer: invalid choice: 'lamb'"),
        (["--impl", "apex"], "argument --impl: invalid choice: 'apex'"),
        (["--epochs", "0"], "argument --epochs: must be a whole number, at least 1, not 0"),
        (["--epochs", "1.5"], "argument --epochs: '1.5' is not a whole number"),
        (["--batch-size", "0"], "argument --batch-size: must be a whole number, at least 1, not 0"),
        (["--accumulate", "0"], "argument --accumulate: must be a whole number, at least 1"),
        (["--threads", "10000"], "argument --threads: 10000 threads are too many for "),
        (["--workers", "10000"], "argument --workers: 10000 workers are too many for "),
        (["--image-size", "100000"], "--image-size: 100000x100000 pixels need "),
        (["--threads", "-1"], "argument --threads: must be a whole number, at least 1, not -1"),
        (["--workers", "-1"], "argument --workers: must be a whole number, at least 0, not -1"),
        (["--lr", "-0.1"], "argument --lr: must be a number, at least 0, not -0.1"),
        (["--lr", "nan"], "argument --lr: must be a number, at least 0, not nan"),
        (["--lr", "inf"], "argument --lr: must be a number, at least 0, not inf"),
        (["--weight-decay", "-1"], "argument --weight-decay: must be a number, at least 0"),
        (["--label-smoothing", "1.1"], "argument --label-smoothing: must be a number, from 0 to 1"),
        (["--clip-norm", "0"], "argument --clip-norm: must be a number, above 0, not 0"),
        (["--precision", "fp8"], "argument --precision: invalid choice: 'fp8'"),
        (["--seed", "-1"], "argument --seed: must be a whole number, from 0 to 4294967295, not -1"),
        (["--classes", "5-"], "argument --classes: '5-' is not of the form 0,3,5-9"),
        (["--classes", "9-5"], "argument --classes: 9-5 goes down; 5-9 goes up"),
        (["--data", "folder:"], "--data: 'folder:' names no folder; the form is folder:PATH"),
        (["--classes", "a"], "argument --classes: 'a' is not of the form 0,3,5-9"),
        (["--classes", "0,12"], "--data digits: classes: 12 is not among 0 to 9"),
        (["--per-class", "9999"], "--data digits: per_class is 9999"),
        (["--augment", "none,crop"], "argument --augment: 'none,crop' is not 'none' or some of"),
        (["--augment", "blur"], "argument --augment: 'blur' is not 'none' or some of crop"),
        (["--momentum", "0.9"], "--momentum: adamw has none; sgd and rmsprop do"),
        (["--device", "tpu"], "--device: 'tpu' is not available here; 'cpu'"),
        (["--checkpoint-every", "5"], "--checkpoint-every: give --out, the folder to write to"),
        (["--new-head"], "--new-head: a fresh network has one already; give --init"),
        (["--init", "x", "--weight-init", "he"], "--weight-init: --init says what weights to"),
        (["--init", "x", "--pretrained", "y"], "--pretrained: --init says what weights to"),
        (["--init", "{tmp}/no.pt"], "--init: cannot read {tmp}/no.pt: No such file"),
        (["--out", "{tmp}/file"], "--out: cannot write to {tmp}/file: "),
        (["--out", "{tmp}/file/sub"], "--out: cannot write to {tmp}/file/sub: "),
        (["--resume", "{tmp}/no"], "--resume: cannot read {tmp}/no: No such file"),
        (["--resume", "{tmp}"], "--resume: cannot read {tmp}/checkpoint.pt: No such file"),
        (["--resume", "{tmp}/file"], "--resume: {tmp}/file is a file; name the run's folder"),
        (
            ["--scheduler", "cosinus"],
            "--scheduler: 'cosinus' can't be had by name; there are none, step",
        ),
        (["--scheduler", "LambdaLR"], "--scheduler: 'LambdaLR' can't be had by name"),
        (["--scheduler", "step"], "--scheduler step: StepLR missing 1 required positional"),
        (["--scheduler-arg", "gamma"], "argument --scheduler-arg: 'gamma' is not of the form"),
        (
            ["--scheduler", "multistep", "--scheduler-arg", "milestones={{1, 2}}"],
            "argument --scheduler-arg: milestones must be a number, a string or a list of them",
        ),
        (
            ["--scheduler", "exponential", "--scheduler-arg", "gamma=abc"],
            "--scheduler-arg: gamma must be a number, not 'abc'",
        ),
        (
            ["--scheduler", "step", "--scheduler-arg", "step_size=abc"],
            "--scheduler-arg: step_size must be a number, not 'abc'",
        ),
        (
            ["--scheduler", "multistep", "--scheduler-arg", "milestones=abc"],
            "--scheduler-arg: milestones must be a number or a list of them, not 'abc'",
        ),
        (
            ["--scheduler", "multistep", "--scheduler-arg", "milestones=5"],
            "--scheduler multistep: MultiStepLR can't work with milestones=5 (--scheduler-arg)",
        ),
        (
            ["--scheduler", "step", "--scheduler-arg", "step_size=0"],
            "--scheduler step: StepLR can't work with step_size=0 (--scheduler-arg)",
        ),
        (
            ["--scheduler", "plateau", "--scheduler-arg", "patience=x"],
            "--scheduler-arg: patience must be a number, not 'x'",
        ),
        (
            ["--scheduler-arg", "gama=1"],
            "--scheduler cosine: CosineAnnealingLR got an unexpected keyword",
        ),
        (["--warmup", "-1"], "argument --warmup: must be a number, at least 0, not -1"),
        (["--warmup", "20"], "--warmup: 20 epochs leave none of 20 to train in"),
        (
            ["--scheduler", "one-cycle", "--scheduler-arg", "total_steps=3"],
            "--scheduler one-cycle: its 3 steps are fewer than the 400 of training",
        ),
        (
            ["--scheduler", "plateau", "--scheduler-interval", "step"],
            "--scheduler-interval: plateau looks at the epoch's validation loss",
        ),
    ],
)
def test_bad_options_get_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    (tmp_path / "file").touch()
    line = error_of(capsys, *(option.format(tmp=tmp_path) for option in options))
    assert f"error: {message.format(tmp=tmp_path)}" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_one_image_is_too_few_for_some_networks(capsys: pytest.CaptureFixture[str]) -> None:
    """VGG makes one value per channel of a digit, which batch norm can't normalise alone."""
    line = error_of(capsys, "--model", "vgg11", "--per-class", 1, "--batch-size", 1)
    assert "--batch-size: one image is too few for this network: Expected more than 1" in line


def test_missing_data_are_described_in_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train("--data", "mnist", "--data-dir", tmp_path)
    said = capsys.readouterr().err
    place = tmp_path / "MNIST" / "raw"
    assert f"error: --data mnist: mnist is not in {place}. --download fetches it" in said
    assert said.count("https://") == said.count("(md5 ") == 4


def test_missing_extras_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("run", "loop", "cost", "start", "report"):
        monkeypatch.delitem(sys.modules, f"fusedopt.train.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    line = error_of(capsys, "--epochs", 1)
    assert line.endswith("training needs tqdm: pip install 'fusedopt[train]'")


def test_the_timer_looks_at_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which isn't the current one with --device cuda:1."""
    asked = []
    event = type("Event", (), {"record": lambda self, stream=None: asked.append(stream)})
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: event())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: device)
    with StepTimer(torch.device("cuda:1")):
        pass
    assert asked == [torch.device("cuda:1")] * 2


def test_the_timer_leaves_pauses_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([1.0, 1.5, 10.0, 10.25])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    timer = StepTimer(torch.device("cpu"))
    with timer, timer.paused():
        pass
    assert timer.seconds == 0.5 + 0.25


def test_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "fusedopt.train", "--epochs", "1", "--model", "lenet"]
    command += ["--threads", "1", *map(str, SMALL)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "img/s" not in done.stderr  # no progress bar where nobody watches
    for text in ("epoch  1/1  loss", "test accuracy", "of training", "torch.optim.AdamW"):
        assert text in done.stdout
