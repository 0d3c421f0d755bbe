"""What a run prints: its set-up, a line for each epoch, and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusedopt.train import world
from fusedopt.train.checkpoint import BESIDE, MODEL
from fusedopt.train.cost import Cost
from fusedopt.train.data import Splits
from fusedopt.train.loop import Figures
from fusedopt.train.optimizers import CLASSES
from fusedopt.train.options import Options
from fusedopt.train.state import Row, TrainingState
from fusedopt.train.world import say


def class_name(options: Options, impl: str) -> str:
    """Returns the name of the optimizer's class, with the package it is from."""
    module = "fusedopt" if impl == "fusedopt" else "torch.optim"
    return f"{module}.{CLASSES[options.optimizer]}"


def duration(seconds: float) -> str:
    """Returns seconds as people say them: 4.2 s, 3:05 or 2:00:07."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def print_setup(options: Options, state: TrainingState, splits: Splits) -> None:
    """Prints what is going to be trained."""
    parameters = sum(p.numel() for p in state.model.parameters())
    trained = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
    settings = ", ".join(f"{k} {_setting(v)}" for k, v in options.optimizer_kwargs().items())
    groups = len(state.optimizer.param_groups)
    frozen = f", {trained:,} of them trained" if trained < parameters else ""
    several = f", {world.size()} processes, {options.strategy}" if options.strategy else ""
    precision = "" if options.precision == "fp32" else f", {options.precision}"
    precision += ", stochastic rounding" if options.stochastic_rounding else ""
    precision += ", master weights" if options.master_weights else ""
    say(f"{options.model}, {parameters:,} parameters{frozen}, {options.device}{precision},"
        f" seed {options.seed}{several}")  # fmt: skip
    say(f"{class_name(options, options.impl)}, {settings}"
        + (f", {groups} parameter groups" if groups > 1 else ""))  # fmt: skip
    say(_data(options, splits))
    say(_recipe(options, state.scheduler.steps_per_epoch))
    if state.class_weights is not None:
        low, high = state.class_weights.min().item(), state.class_weights.max().item()
        say(f"the training loss weights the classes with {low:.3g} to {high:.3g}")
    if options.sampler:
        say("training images are drawn with replacement, all classes equally often")
    if state.epoch or state.batch:
        say(f"continues after {state.done}")


def _data(options: Options, splits: Splits) -> str:
    size, channels = splits.image_size, splits.in_channels
    sizes = len(splits.train), len(splits.validation), len(splits.test)
    return (
        f"{options.data}: {len(splits.classes)} classes, images of {size}x{size} pixels in"
        f" {channels} channel{'s' * (channels > 1)};"
        " {} training, {} validation, {} test images".format(*sizes)
    )


def _recipe(options: Options, steps: int) -> str:
    epochs, batches = options.epochs, options.accumulate
    each = f"{batches} batches" if batches > 1 else "a batch"
    arguments = ", ".join(f"{key}={value}" for key, value in options.scheduler_arg)
    schedule = options.scheduler + (f" ({arguments})" if arguments else "")
    warm = f"warm-up of {options.warmup:g} epoch{'s' * (options.warmup != 1)}, then "
    schedule = warm + schedule if options.warmup else f"scheduler {schedule}"
    return (
        f"{epochs} epoch{'s' * (epochs > 1)} of {steps} step{'s' * (steps > 1)}, {each} of"
        f" {options.batch_size} images each; {schedule}; augmentation: {options.augment}"
    )


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return (
        ", ".join(f"{number:g}" for number in value) if isinstance(value, tuple) else f"{value:g}"
    )


def print_epoch(options: Options, rows: Sequence[Row]) -> None:
    """Prints the last epoch's figures, and how much time the others will take."""
    row, left = rows[-1], options.epochs - len(rows)
    seconds = sum(row["seconds"] for row in rows) / len(rows) * left
    say(
        f"epoch {row['epoch']:2d}/{options.epochs}  loss {row['train_loss']:.4f}"
        f"  accuracy {row['train_accuracy']:6.1%}  validation {row['validation_accuracy']:6.1%}"
        f"  {duration(row['seconds'])}, {row['images_per_second']:.0f} images/s"
        + (f", {duration(seconds)} left" if left else "")
    )


def print_training(options: Options, state: TrainingState, test: Figures) -> None:
    """Prints which network came out, the test's figures and what the optimizer took."""
    say(_chosen(options, state))
    say(f"test accuracy {test.accuracy:.2%}")
    seconds = sum(row["seconds"] for row in state.rows)
    own = sum(row["optimizer_seconds"] for row in state.rows)
    say(f"{class_name(options, options.impl)} took {own:.2f} s of {seconds:.1f} s of training"
        f" ({own / seconds:.1%}: {_phase(options)}"
        + "; exchanging the parameters is not counted" * (options.strategy == "zero")
        + ")")  # fmt: skip


def _chosen(options: Options, state: TrainingState) -> str:
    """Says which epoch's network is tested, and where both are kept."""
    path, best, last = options.out or options.resume, state.stopping.epoch, state.epoch
    if state.stopping.weights is None:  # a run of an earlier version, which kept none
        return f"the last epoch's network is tested: that of epoch {last}"
    row = state.rows[best - 1]
    figures = (
        f"with validation accuracy {row['validation_accuracy']:.1%} and loss"
        f" {row['validation_loss']:.4f}"
    )
    kept = "" if path is None else f" and kept, in {path / MODEL}"
    beside = "" if path is None else f"; {BESIDE[options.keep]} has that of epoch"
    if options.keep == "best":
        text = f"the best epoch is {best}, {figures}: its network is tested{kept}"
        return f"{text}{beside} {last}" if beside else text
    text = f"the last epoch's network is tested{kept}"
    return f"{text}{beside or '; the best epoch is'} {best}, {figures}"


def _phase(options: Options) -> str:
    """Names what is timed as the optimizer phase."""
    parts = ["clip"] * (options.clip_norm is not None) + ["step", "zero_grad"]
    return " + ".join([*parts, "average"] if options.ema is not None else parts)


def print_measuring(seconds: float) -> None:
    """Prints what the rest of the run's time goes to."""
    say("measuring on copies of the model what the optimizer takes with fusedopt and with torch,"
        f" for at most {duration(seconds)}; --no-cost leaves this out")  # fmt: skip


def print_costs(options: Options, costs: dict[str, Cost]) -> None:
    """Prints what the optimizer phase costs with each implementation."""
    rounds = next(iter(costs.values())).rounds
    say(f"by turns, {rounds} training steps each, medians:")
    for impl, cost in costs.items():
        say(f"  {class_name(options, impl):20s} {cost.step_ms:8.3f} ms/step"
            f"  {cost.share:6.1%} of forward + backward + {_phase(options)}")  # fmt: skip
    if "torch" not in costs:
        say(f"  torch.optim has no {CLASSES[options.optimizer]} to compare with")
