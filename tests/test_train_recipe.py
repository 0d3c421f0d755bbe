"""The training script's recipe: schedules, groups, precision, averages, early stopping."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("tqdm", reason="the training script needs fusedopt[train]")

from train_runs import SMALL, short_measurement, train  # noqa: F401

from fusedopt import swa_utils
from fusedopt.train import loop, run
from fusedopt.train.augment import make_augmentation
from fusedopt.train.cli import make_parser, parse
from fusedopt.train.loop import make_optimizer
from fusedopt.train.models import make_model
from fusedopt.train.options import Options, UserError
from fusedopt.train.recipe import EarlyStopping, parameter_groups
from fusedopt.train.schedule import SCHEDULERS, Scheduler
from fusedopt.train.start import start

PLAIN = ("--optimizer", "sgd", "--momentum", 0, "--weight-decay", 0, "--augment", "none")


def options_of(*options: object) -> Options:
    return parse(make_parser(), ["--model", "lenet", *map(str, options)])[0]


def first_batches(count: int, options: Options) -> list[tuple[Tensor, Tensor]]:
    """The first batches of the first epoch, as a network gets them where nothing is augmented."""
    splits = run.load_splits(options)
    order = loop.epoch_order(splits.train, options, 0)
    normalise = make_augmentation("none", splits)
    batches = []
    for i in range(count):
        chosen = order[i * options.batch_size : (i + 1) * options.batch_size]
        images, labels = zip(*(splits.train[j] for j in chosen), strict=True)
        batches.append((normalise(torch.stack(images)), torch.tensor(labels)))
    return batches


def initial_model(options: Options) -> nn.Module:
    return start(options, run.load_splits(options), None).model


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


SCHEDULES: list[tuple[str, dict[str, Any], Callable[[Any], Any]]] = [
    ("none", {}, lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1.0)),
    ("step", {"step_size": 2}, lambda o: lr_scheduler.StepLR(o, 2)),
    ("multistep", {"milestones": [1, 3]}, lambda o: lr_scheduler.MultiStepLR(o, [1, 3])),
    ("exponential", {}, lambda o: lr_scheduler.ExponentialLR(o, 0.85)),
    ("cosine", {}, lambda o: lr_scheduler.CosineAnnealingLR(o, 24)),
    ("CosineAnnealingLR", {"T_max": 3}, lambda o: lr_scheduler.CosineAnnealingLR(o, 3)),
    ("cosine-restarts", {"T_0": 2}, lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2)),
    ("linear", {"start_factor": 0.1}, lambda o: lr_scheduler.LinearLR(o, 0.1)),
    ("constant", {}, lambda o: lr_scheduler.ConstantLR(o)),
    ("polynomial", {"power": 2}, lambda o: lr_scheduler.PolynomialLR(o, 6, 2)),
    ("plateau", {"patience": 0}, lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0)),
    ("one-cycle", {"pct_start": 0.5}, lambda o: lr_scheduler.OneCycleLR(o, 0.1, 24, pct_start=0.5)),
    (
        "cyclic",
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3},
        lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3),
    ),
]


@pytest.mark.parametrize(("name", "arguments", "make"), SCHEDULES)
def test_schedulers_by_name(name: str, arguments: dict[str, Any], make: Any) -> None:
    """Epoch by epoch, the learning rates (and momenta) that torch's scheduler gives by hand."""
    given = [x for k, v in arguments.items() for x in ("--scheduler-arg", f"{k}={v}")]
    options = options_of(
        "--optimizer", "sgd", "--lr", 0.1, "--epochs", 6, "--scheduler", name, *given, "--warmup", 0
    )
    ours, by_hand = (
        make_optimizer(options, "fusedopt", [nn.Parameter(torch.zeros(1))]) for _ in range(2)
    )
    scheduler, reference = Scheduler(ours, options, steps_per_epoch=4), make(by_hand)
    seen = set()
    for epoch in range(6):
        loss = abs(epoch - 2)  # gets better, then worse
        for step in range(4 * epoch + 1, 4 * epoch + 5):
            for optimizer in (ours, by_hand):
                optimizer.step()
            scheduler.after_step(step)
            if scheduler.interval == "step":
                reference.step()
            assert ours.param_groups[0]["lr"] == by_hand.param_groups[0]["lr"]
            assert ours.param_groups[0]["momentum"] == by_hand.param_groups[0]["momentum"]
            seen.add(ours.param_groups[0]["lr"])
        scheduler.after_epoch(step, loss)
        if scheduler.by_loss:
            reference.step(loss)
        elif scheduler.interval == "epoch":
            reference.step()
    assert (len(seen) == 1) == (name == "none")


@pytest.mark.parametrize(("name", "arguments", "_"), SCHEDULES)
@pytest.mark.parametrize("warmup", [2.0, 1.5])
def test_any_scheduler_begins_after_the_warm_up(
    name: str, arguments: dict[str, Any], _: Any, warmup: float
) -> None:
    """With the learning rates that it has without one; they are reached evenly."""
    per_epoch = 4

    def learning_rates(epochs: int, warmup: float) -> list[float]:
        given = [x for k, v in arguments.items() for x in ("--scheduler-arg", f"{k}={v}")]
        options = options_of("--optimizer", "sgd", "--lr", 0.1, "--epochs", epochs, "--scheduler",
                             name, *given, "--warmup", warmup)  # fmt: skip
        optimizer = make_optimizer(options, "fusedopt", [nn.Parameter(torch.zeros(1))])
        scheduler, seen = Scheduler(optimizer, options, per_epoch), []
        for step in range(1, per_epoch * epochs + 1):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.after_step(step)
            if step % per_epoch == 0:
                scheduler.after_epoch(step, 1.0)
        return seen

    steps = int(warmup * per_epoch)
    seen = learning_rates(6, warmup)
    first = seen[steps]
    assert seen[:steps] == pytest.approx([first * (i + 1) / (steps + 1) for i in range(steps)])
    if warmup == 2.0:
        assert seen[steps:] == learning_rates(4, 0)
    elif name in ("step", "multistep", "exponential"):
        # In the epoch in which it begins, half of which is left.
        assert seen[steps : steps + 6] == learning_rates(6, 0)[2:8]


def test_the_default_schedule_is_a_cosine_over_the_run() -> None:
    given = ("--per-class", 5, "--batch-size", 16, "--lr", 0.01, "--no-cost")
    rows = train(*given, "--epochs", 10).rows
    total, warm = 40, 2  # a twentieth
    expected = [
        0.005 * (1 + math.cos(math.pi * (4 * epoch - warm) / (total - warm)))
        for epoch in range(1, 11)
    ]
    assert [row["lr"] for row in rows] == pytest.approx(expected, abs=1e-12)
    assert options_of("--epochs", 100).warmup == 5
    assert options_of("--scheduler", "step").warmup == 0


def test_every_scheduler_has_a_short_name() -> None:
    """But those that are made of functions or other schedulers."""
    others = {"LRScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"}
    assert set(SCHEDULERS.values()) == set(lr_scheduler.__all__) - others
    assert {name for name, _, _ in SCHEDULES} >= set(SCHEDULERS)


@pytest.mark.parametrize(("name", "momentum"), [("rmsprop", 0.0), ("adagrad", None)])
def test_one_cycle_steps_with_each_batch_and_leaves_absent_momentum_alone(
    name: str, momentum: float | None
) -> None:
    given = ("--scheduler", "one-cycle", "--optimizer", name, "--lr", 0.01, "--epochs", 4)
    options = options_of(*given)
    optimizer = make_optimizer(options, "fusedopt", [nn.Parameter(torch.zeros(1))])
    Scheduler(optimizer, options, 4)
    assert optimizer.param_groups[0].get("momentum") == momentum
    by_hand = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    reference = lr_scheduler.OneCycleLR(by_hand, 0.01, total_steps=16, cycle_momentum=False)
    for row in train(*SMALL, *given).rows:
        for _ in range(4):
            by_hand.step()
            reference.step()
        assert row["lr"] == reference.get_last_lr()[0]


def test_weight_decay_can_spare_norms_and_biases() -> None:
    model = make_model("resnet20", 10, 1, 16)
    groups = parameter_groups(model, options_of("--no-decay-on-norm-and-bias"))
    decayed, spared = (
        [p for g in groups if g.get("weight_decay", 1) == value for p in g["params"]]
        for value in (1, 0.0)
    )
    assert all(p.ndim > 1 for p in decayed) and all(p.ndim == 1 for p in spared)
    assert len(decayed) + len(spared) == len(list(model.parameters()))
    assert len(groups) == 2 and len(parameter_groups(model, options_of())) == 1


def test_learning_rates_fall_towards_the_input() -> None:
    model = make_model("lenet", 10, 1, 16)
    options = options_of("--lr-decay-by-depth", 0.5, "--lr", 0.8, "--scheduler", "one-cycle")
    optimizer = make_optimizer(options, "fusedopt", parameter_groups(model, options))
    names = {p: name for name, p in model.named_parameters()}
    lrs = {names[p]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    layers = ("conv1", "conv2", "fc1", "fc2", "fc3")
    for i, layer in enumerate(layers):
        assert lrs[f"{layer}.weight"] == lrs[f"{layer}.bias"] == 0.8 * 0.5 ** (4 - i)
    scheduler = Scheduler(optimizer, options, 10)  # the depths stay apart in it
    for step in range(30):
        optimizer.step()
        scheduler.after_step(step + 1)
        ratios = {a["lr"] / b["lr"] for a, b in zip(
            optimizer.param_groups, optimizer.param_groups[1:], strict=False)}  # fmt: skip
        assert all(math.isclose(ratio, 0.5) for ratio in ratios)


def test_label_smoothing() -> None:
    given = (*PLAIN, "--lr", 0, "--label-smoothing", 0.3, "--epochs", 1, *SMALL)
    options = options_of(*given)
    model = initial_model(options)
    losses = [
        F.cross_entropy(model(images), labels, label_smoothing=0.3).item() * len(labels)
        for images, labels in first_batches(4, options)
    ]
    assert train(*given).rows[0]["train_loss"] == pytest.approx(sum(losses) / 50, rel=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradients_are_clipped_unscaled(precision: str) -> None:
    given = (*PLAIN, "--lr", 1, "--per-class", 5, "--batch-size", 50, "--epochs", 1)
    given += ("--precision", precision)
    before = flat(initial_model(options_of(*given)))
    norm = 0.01
    free, clipped = (
        flat(train(*given, *clip).model) - before for clip in ((), ("--clip-norm", norm))
    )
    assert free.norm() > 2 * norm
    assert clipped.norm() == pytest.approx(norm, rel=1e-3)


def test_accumulated_batches_are_one_large_batch() -> None:
    """The last step has fewer, and each image counts the same."""
    given = (*PLAIN, "--epochs", 2, "--per-class", 10)
    large = train(*given, "--batch-size", 32)
    small = train(*given, "--batch-size", 8, "--accumulate", 4)
    assert [row["step"] for row in small.rows] == [row["step"] for row in large.rows] == [4, 8]
    torch.testing.assert_close(flat(small.model), flat(large.model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes = set()
    convolve = nn.Conv2d.forward

    def spy(self: nn.Conv2d, images: Tensor) -> Tensor:
        result = convolve(self, images)
        dtypes.add(result.dtype)
        return result

    given = ("--epochs", 1, *SMALL)
    full = train(*given)
    monkeypatch.setattr(nn.Conv2d, "forward", spy)
    mixed = train(*given, "--precision", precision)
    assert dtypes == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert {p.dtype for p in mixed.model.parameters()} == {torch.float32}
    assert mixed.rows[0]["train_loss"] == pytest.approx(full.rows[0]["train_loss"], rel=0.02)
    assert mixed.rows[0]["train_loss"] != full.rows[0]["train_loss"]


@pytest.mark.parametrize(
    "options", [(), ("--stochastic-rounding",), ("--master-weights", "--stochastic-rounding")]
)
def test_weights_in_bfloat16(options: tuple[str, ...], tmp_path: Path) -> None:
    """Trained, validated, saved, and resumed with the same bits."""
    given = (*SMALL, "--precision", "bf16-true", *options)
    straight = train(*given, "--epochs", 2)
    assert {p.dtype for p in straight.model.parameters()} == {torch.bfloat16}
    assert straight.rows[-1]["train_loss"] < straight.rows[0]["train_loss"]
    train(*given, "--epochs", 1, "--out", tmp_path / "run")
    resumed = train("--resume", tmp_path / "run", "--epochs", 2)
    assert torch.equal(flat(resumed.model), flat(straight.model))


def test_what_bfloat16_weights_refuse() -> None:
    for given in (
        ("--stochastic-rounding",),
        ("--master-weights", "--precision", "bf16"),
        ("--master-weights", "--precision", "bf16-true", "--impl", "torch"),
        ("--ema", "0.9", "--precision", "bf16-true"),
    ):
        with pytest.raises(UserError):
            options_of(*SMALL, *given)


def test_an_overflow_skips_the_step_and_halves_the_scale() -> None:
    options = options_of("--precision", "fp16", *SMALL, "--epochs", 1)
    splits = run.load_splits(options)
    state = start(options, splits, None)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = flat(state.model)
    augmentation = make_augmentation("none", splits)
    loop.train_epoch(state, splits.train, augmentation, options, lambda: None, "")
    assert torch.equal(flat(state.model), before)
    assert state.scaler.get_scale() == 2.0**56


def test_the_moving_average_is_validated_and_tested() -> None:
    given = (*SMALL, "--epochs", 2, "--ema", 0.8, "--keep", "last")
    result = train(*given)
    averages = []

    class Spy(swa_utils.AveragedModel):
        def update_parameters(self, model: nn.Module) -> None:
            averages.append(flat(model))
            super().update_parameters(model)

    def spied(model: nn.Module, options: Options, impl: str) -> AveragedModel:
        return Spy(
            model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(options.ema), use_buffers=True
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusedopt.train.start.make_ema", spied)
        again = train(*given)
    expected = averages[0]
    for weights in averages[1:]:
        expected = 0.8 * expected + 0.2 * weights
    torch.testing.assert_close(flat(again.model), expected, rtol=1e-5, atol=1e-7)
    assert len(averages) == 8 and torch.equal(flat(again.model), flat(result.model))
    options = options_of(*given)
    splits = run.load_splits(options)
    normalise = make_augmentation("none", splits)
    for part, figures in (
        (splits.test, result.test._asdict()),
        (splits.validation, {k: result.rows[-1][f"validation_{k}"] for k in ("loss", "accuracy")}),
    ):
        assert loop.evaluate(result.model, part, normalise, options)._asdict() == figures


@pytest.mark.parametrize(("monitor", "sign"), [("loss", 1), ("accuracy", -1)])
def test_early_stopping(monitor: str, sign: int) -> None:
    model = nn.Linear(1, 1)
    stopping = EarlyStopping(patience=2, monitor=monitor)
    figures = [5.0, 3.0, 3.0, 2.0, math.nan, 2.5, 1.0]
    for epoch, figure in enumerate(figures, 1):
        assert not stopping.exhausted
        nn.init.constant_(model.weight, epoch)
        stopping.update(epoch, {monitor: sign * figure, "other": 0.0}, model)
        if stopping.exhausted:
            break
    assert epoch == 6 and stopping.epoch == 4 and stopping.best == sign * 2.0
    assert stopping.weights is not None and stopping.weights["weight"].item() == 4
    loaded = EarlyStopping(patience=2, monitor=monitor)
    loaded.load_state_dict(copy.deepcopy(stopping.state_dict()))
    assert loaded == stopping


def test_the_best_weights_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([2.0, 1.0, 1.5, 1.2, 1.1])
    seen = []

    def evaluate(model: nn.Module, *others: object) -> loop.Figures:
        seen.append(flat(model))
        return loop.Figures(next(losses), 0.5)

    monkeypatch.setattr(run, "evaluate", evaluate)
    result = train("--epochs", 9, "--patience", 2, "--monitor", "loss", *SMALL)
    assert [row["validation_loss"] for row in result.rows] == [2.0, 1.0, 1.5, 1.2]
    assert torch.equal(seen[-1], seen[1])  # what is tested is the second epoch's
    assert torch.equal(flat(result.model), seen[1]) and not torch.equal(seen[1], seen[3])
