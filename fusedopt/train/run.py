"""One run from start to end: data, model, epochs, the one test, and what the optimizer took."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fusedopt.train import checkpoint, data
from fusedopt.train.augment import make_augmentation
from fusedopt.train.checkpoint import TrainingState
from fusedopt.train.cli import Options, UserError
from fusedopt.train.compare import ROUNDS, Cost, compare
from fusedopt.train.loop import CLASSES, Epoch, evaluate, make_optimizer, train_epoch
from fusedopt.train.models import make_model


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        model: the trained network.
        epochs: one entry for each epoch of this run, those before a `--resume` left out.
        test_accuracy: share of the test set classified correctly, after the last epoch.
        train_seconds: time of the epochs, without validation and test.
        optimizer_seconds: how much of it `optimizer.step()` took.
        costs: a step's cost with "fusedopt" and with "torch", measured after training.
    """

    model: nn.Module
    epochs: list[Epoch]
    test_accuracy: float
    train_seconds: float
    optimizer_seconds: float
    costs: dict[str, Cost]

    @property
    def optimizer_share(self) -> float:
        """The optimizer's share of the training time; 0 where no epoch was left to do."""
        return self.optimizer_seconds / self.train_seconds if self.epochs else 0.0


def run(options: Options) -> Result:
    """Trains, tests once, compares the implementations, and prints all of it.

    Raises:
        UserError: a checkpoint can't be read or written.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        splits = data.load_data("digits", root=Path("data"), seed=options.seed)
    except data.DataError as error:
        raise UserError(str(error)) from error
    state = _start(options, splits)
    if options.resume is not None:
        checkpoint.load(options.resume, state, options)
    augmentation = make_augmentation("crop", splits, state.generator)
    loader = data.make_loader(
        splits.train, options.batch_size, shuffle=True, workers=0, generator=state.generator
    )
    _print_setup(options, state, (splits.train, splits.validation, splits.test))

    # The first step of any optimizer makes torch import its compiler: seconds that are no step's.
    make_optimizer(options, options.impl, [torch.zeros(1, requires_grad=True)]).step()
    epochs = []
    while state.epoch < options.epochs:
        title = f"epoch {state.epoch + 1:2d}/{options.epochs}"
        epoch = train_epoch(state, loader, augmentation, title)
        epochs.append(epoch)
        validation_accuracy = evaluate(state.model, splits.validation, augmentation)
        print(
            f"{title}  loss {epoch.loss:.4f}  accuracy {epoch.accuracy:6.1%}"
            f"  validation {validation_accuracy:6.1%}  {epoch.seconds:.1f} s",
            flush=True,
        )
        if options.checkpoint is not None:
            checkpoint.save(options.checkpoint, state, options)

    images, labels = next(
        iter(data.make_loader(splits.train, options.batch_size, shuffle=False, workers=0))
    )
    images = augmentation(images)
    result = Result(
        model=state.model,
        epochs=epochs,
        test_accuracy=evaluate(state.model, splits.test, augmentation),
        train_seconds=sum(epoch.seconds for epoch in epochs),
        optimizer_seconds=sum(epoch.optimizer_seconds for epoch in epochs),
        costs=compare(state.model, options, images, labels),
    )
    _print_result(options, result)
    return result


def _start(options: Options, splits: data.Splits) -> TrainingState:
    """Returns the state before the first epoch."""
    torch.manual_seed(options.seed)
    model = make_model(options.model, len(splits.classes), splits.in_channels, splits.image_size)
    model.to(options.device)
    optimizer = make_optimizer(options, options.impl, model.parameters())
    # Not a schedule over all epochs: a resumed run may have more of them than it began with.
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, options.gamma)
    generator = torch.Generator().manual_seed(options.seed)
    return TrainingState(model, optimizer, scheduler, generator)


def _print_setup(options: Options, state: TrainingState, sets: tuple) -> None:
    """Prints what is going to be trained."""
    parameters = sum(p.numel() for p in state.model.parameters())
    settings = ", ".join(f"{k} {v:g}" for k, v in options.optimizer_kwargs().items())
    print(f"{options.model}, {parameters:,} parameters, {options.device}, seed {options.seed}")
    print(f"{_class_name(options, options.impl)}, {settings}")
    print("digits: {} training, {} validation, {} test images".format(*map(len, sets)), flush=True)


def _print_result(options: Options, result: Result) -> None:
    """Prints the test accuracy and what the optimizer took."""
    print(f"test accuracy {result.test_accuracy:.2%}")
    print(
        f"{_class_name(options, options.impl)} took {result.optimizer_seconds:.2f} s of"
        f" {result.train_seconds:.1f} s of training ({result.optimizer_share:.1%})"
    )
    print(f"on copies of the model, by turns, {ROUNDS} training steps each, medians:")
    for impl, cost in result.costs.items():
        print(
            f"  {_class_name(options, impl):20s} {cost.step_ms:8.3f} ms/step"
            f"  {cost.share:6.1%} of forward + backward + step"
        )


def _class_name(options: Options, impl: str) -> str:
    module = "fusedopt" if impl == "fusedopt" else "torch.optim"
    return f"{module}.{CLASSES[options.optimizer]}"
