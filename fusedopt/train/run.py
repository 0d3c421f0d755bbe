"""One run from start to end: data, model, epochs, the one test, and what the optimizer took."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate

from fusedopt.train import checkpoint, cost, report, strategy, world
from fusedopt.train.augment import make_augmentation
from fusedopt.train.cost import Cost
from fusedopt.train.data import DataError, Splits
from fusedopt.train.export import export
from fusedopt.train.folder import RESULT, RunFolder, write_json
from fusedopt.train.guard import Guard
from fusedopt.train.interrupts import Interrupted, Interrupts
from fusedopt.train.loop import Figures, evaluate, make_optimizer, train_epoch
from fusedopt.train.options import OneProcessError, Options
from fusedopt.train.source import find_splits, load_splits, user_error
from fusedopt.train.start import start
from fusedopt.train.state import Row, TrainingState


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        model: the trained network of the best epoch, or of the last one with `--keep last`;
            averaged, where that was asked for.
        rows: figures of each epoch, those before a `--resume` included.
        test: the network's loss and accuracy on the test set.
        costs: a step's cost with "fusedopt" and with "torch", measured after training; empty
            with `--no-cost`, and where torchrun has started it.
    """

    model: nn.Module
    rows: list[Row]
    test: Figures
    costs: dict[str, Cost]


def run(options: Options, content: dict[str, Any] | None = None) -> Result:
    """Trains, tests once, compares the implementations, and prints all of it.

    Args:
        options: from the command line.
        content: of the checkpoint to continue, or None.

    Raises:
        UserError: the options can't work with this data, or a file can't be read or written.
        Failed: images can't be read, or training has diverged.
        Interrupted: Ctrl-C; the folder's checkpoint has all that was done.
    """
    splits = load_splits(options) if content is None else find_splits(options, content)
    state = start(options, splits, content)
    with open_folder(options, state, content) as folder:
        train(options, splits, state, folder)
        epoch = state.stopping.epoch if options.keep == "best" else state.epoch
        done, path = "interrupted; training is done", folder and folder.path
        lost = f"{done}; nothing is kept without --out FOLDER"
        again = f"{done}; to test its network: python -m fusedopt.train --resume {path}"
        with _ctrl_c_says(again if path else lost):
            test = evaluate(state.averaged, splits.test, make_augmentation("none", splits), options)
            report.print_training(options, state, test)
            world.in_first(
                lambda: _write_result(folder, epoch, test, {})
            )  # what follows takes some time
        kept = f"{done}, and {path} has its result, without the optimizers' cost"
        with _ctrl_c_says(kept if path else lost):
            if options.export:
                world.say(world.from_first(lambda: export(path)))
            costs = _measure(options, splits, state)
            _write_result(folder, epoch, test, costs)
    return Result(state.averaged, state.rows, test, costs)


@contextlib.contextmanager
def _ctrl_c_says(text: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(text) from None


def _write_result(
    folder: RunFolder | None, epoch: int, test: Figures, costs: dict[str, Cost]
) -> None:
    if folder is not None:
        figures = {"epoch": epoch, "test": test._asdict()}
        figures |= {"costs": {k: asdict(v) for k, v in costs.items()}}
        write_json(folder.path / RESULT, figures)


def _measure(options: Options, splits: Splits, state: TrainingState) -> dict[str, Cost]:
    """Returns and prints what the optimizer takes, unless several would measure each other."""
    if options.no_cost or options.strategy is not None:
        return {}
    seconds = min(cost.SECONDS, cost.SHARE * sum(row["seconds"] for row in state.rows))
    report.print_measuring(seconds)
    some = range(min(options.batch_size, len(splits.train)))
    images, labels = default_collate([splits.train[i] for i in some])
    images = make_augmentation("none", splits)(images)
    costs = cost.measure(state.model, options, images, labels, seconds)
    report.print_costs(options, costs)
    return costs


@contextlib.contextmanager
def open_folder(
    options: Options, state: TrainingState, content: dict[str, Any] | None = None
) -> Iterator[RunFolder | None]:
    """Gives the run's folder, if it has one, and finishes it whatever happens."""
    path = options.out or options.resume
    read = None if content is None else content["read"]
    folder = (
        None if path is None else world.in_first(lambda: RunFolder(path, options, state.rows, read))
    )
    try:
        yield folder
    except DataError as error:  # an image file that is read only when its turn comes
        then = "" if path is None else f"; once it is mended or removed, --resume {path} goes on"
        raise OneProcessError(f"{user_error(error, options)}{then}") from error
    finally:
        if folder is not None:
            folder.close(state.rows, state.stopping.epoch or None)


def train(options: Options, splits: Splits, state: TrainingState, folder: RunFolder | None) -> None:
    """Trains `state` until the last epoch, or until early stopping, and takes the best network.

    Raises:
        UserError: a checkpoint can't be written.
        Diverged: the loss or the weights aren't finite; the folder's checkpoint is an earlier one.
        Interrupted: Ctrl-C; the folder's checkpoint has all that was done.
    """
    report.print_setup(options, state, splits)
    # The first step of any optimizer makes torch import its compiler: seconds that are no step's.
    make_optimizer(options, options.impl, [torch.zeros(1, requires_grad=True)]).step()
    augmentation = make_augmentation(options.augment, splits, state.generator)

    with Interrupts() as interrupts:
        guard = Guard(options, state, splits, interrupts)
        while state.epoch < options.epochs and not state.stopping.exhausted:
            title = f"epoch {state.epoch + 1}/{options.epochs}"
            figures = train_epoch(
                state, splits.train, augmentation, options, guard.after_step, title
            )
            guard.check_training(figures)
            validation = evaluate(state.averaged, splits.validation, augmentation, options)
            guard.check_validation(validation)
            _finish_epoch(state, figures, validation)
            guard.save()
            report.print_epoch(options, state.rows)
            if folder is not None:
                folder.record(state.rows)
    _choose(options, splits, state, folder)


def _choose(
    options: Options, splits: Splits, state: TrainingState, folder: RunFolder | None
) -> None:
    """Takes the best epoch's network or the last one's, and keeps both."""
    best, last = state.stopping.weights, state.averaged.state_dict()
    both = {"last": (strategy.whole(last), state.epoch)}
    if best is not None:
        both["best"] = strategy.whole(best), state.stopping.epoch
    for kind, (weights, epoch) in both.items() if folder is not None else ():
        name = checkpoint.MODEL if kind == options.keep else checkpoint.BESIDE[options.keep]
        checkpoint.save_model(folder.path / name, weights, epoch, splits, options)
    if best is not None and options.keep == "best":
        state.averaged.load_state_dict(best)


def _finish_epoch(state: TrainingState, training: Figures, validation: Figures) -> None:
    """Notes an epoch's figures, and lets scheduler and early stopping see them."""
    images, own = state.totals[2].item(), state.timer.seconds
    row: Row = {"epoch": state.epoch + 1, "step": state.step}
    for part, figures in (("train", training), ("validation", validation)):
        row |= {f"{part}_{name}": value for name, value in figures._asdict().items()}
    row["lr"] = max(group["lr"] for group in state.optimizer.param_groups)
    row |= {"seconds": state.seconds, "images_per_second": images / state.seconds}
    row |= {"optimizer_seconds": own, "optimizer_share": own / state.seconds}
    state.rows.append(row)
    state.scheduler.after_epoch(state.step, validation.loss)
    state.stopping.update(state.epoch + 1, validation._asdict(), state.averaged)
    state.next_epoch()
