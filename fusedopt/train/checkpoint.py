"""Checkpoints that continue a run bit for bit, and never lose the one before."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fusedopt.train import world
from fusedopt.train.data import Splits
from fusedopt.train.data.kept import keep, names_of
from fusedopt.train.optimizers import ALL_OPTIONS
from fusedopt.train.options import FOLDER, FREE, Options, UserError
from fusedopt.train.state import TrainingState

CHECKPOINT = "checkpoint.pt"  # in a run's folder: all that continuing it needs
MODEL = "model.pt"  # the network that came out
BESIDE = {"best": "last.pt", "last": "best.pt"}  # by --keep: the network that wasn't chosen
EXPORTED = "model.pt2"  # the program of torch.export


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Writes a file beside `path`, then moves it there: `path` is always a whole one.

    Raises:
        UserError: the disk is full, or the folder can't be written to.
    """
    unfinished = path.with_name(path.name + ".part")
    try:
        with unfinished.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # so that the move outlives a crash of the machine, too
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into the latter
        raise UserError(f"--out: cannot write {path}: {error}".splitlines()[0]) from error
    finally:
        unfinished.unlink(missing_ok=True)


def description(splits: Splits, options: Options) -> dict[str, Any]:
    """Returns what one must know of a run to use its weights, or to continue it."""
    return {
        "options": options.plain(),
        "classes": list(splits.classes),
        "in_channels": splits.in_channels,
        "image_size": splits.image_size,
        "mean": list(splits.mean),
        "std": list(splits.std),
        "images": len(splits.train),
    }


def save(folder: Path, state: TrainingState, splits: Splits, options: Options) -> bool:
    """Writes all that continuing the run needs; all processes must call it.

    Returns:
        Whether it is written. It isn't, and the one before stays, where NaN is among the numbers,
        or infinity among the weights.

    Raises:
        UserError: it can't be written.
    """
    content = description(splits, options) | {"split": keep(splits)} | state.state_dict()
    path, names = folder / CHECKPOINT, [name for name, _ in state.model.named_parameters()]

    def write() -> bool:
        if not _is_sound(content, names):
            return False
        write_atomically(path, lambda file: torch.save(content, file))
        return True

    return world.from_first(write)


def _is_sound(content: dict[str, Any], parameters: Sequence[str]) -> bool:
    weights = content["model"]
    if not all(bool(weights[name].isfinite().all()) for name in parameters):
        return False
    stack = [weights, content["optimizer"]["state"], content["ema"]]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, Tensor) and bool(value.isnan().any()):
            return False
    return True


def save_model(
    path: Path, weights: dict[str, Tensor], epoch: int, splits: Splits, options: Options
) -> None:
    """Writes a network that came out, for `--init` and for predicting.

    Args:
        path: of the file.
        weights: of the network.
        epoch: that it is of.
        splits: the data that it was trained with.
        options: of the run.

    Raises:
        UserError: it can't be written.
    """
    content = description(splits, options) | {"model": weights, "epoch": epoch}
    write_atomically(path, lambda file: torch.save(content, file))


def read(path: Path, flag: str) -> dict[str, Any]:
    """Returns the content of a checkpoint, tensors on the CPU.

    Args:
        path: a file, or a run's folder.
        flag: names the option that asked for it, in messages.

    Raises:
        UserError: there is no such file, or it is none of ours.
    """
    if path.is_dir():
        files = [path / CHECKPOINT] if flag == "--resume" else [path / MODEL, path / CHECKPOINT]
        path = next((file for file in files if file.is_file()), files[-1])
    try:
        read = stamp(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{flag}: cannot read {path}: {error.strerror}") from error
    except Exception as error:  # torch.load raises whatever the damage makes it stumble over
        raise UserError(f"{flag}: {path} is damaged, or not a checkpoint") from error
    if not isinstance(content, dict) or not isinstance(content.get("options"), dict):
        raise UserError(f"{flag}: {path} is not a checkpoint of this script")
    content["read"] = read
    _bring_up_to_date(content)
    return content


def _bring_up_to_date(content: dict[str, Any]) -> None:
    """Adds what a run of an earlier version didn't have, so that it goes on as it has begun."""
    options = content["options"]
    if "warmup" not in options:
        options["warmup"] = 0.0
        options["keep"] = "last" if options.get("patience") is None else "best"
        if options.get("scheduler") in ("cosine", "CosineAnnealingLR"):
            options["scheduler_interval"] = options.get("scheduler_interval") or "epoch"
    if isinstance(content.get("stopping"), dict):
        content["stopping"].setdefault("loss", math.inf)


def stamp(path: Path) -> tuple[int, int]:
    """Returns what a file's replacement has otherwise."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def weights_of(content: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the weights that the run would be tested with: the best, averaged, or last ones."""
    best = (content.get("stopping") or {}).get("weights")
    if best is not None and content["options"].get("keep") != "last":
        return best
    if content.get("ema") is not None:
        start = "module."
        averaged = content["ema"].items()
        return {name[len(start) :]: t for name, t in averaged if name.startswith(start)}
    return content["model"]


def check_options(content: dict[str, Any], options: Options) -> None:
    """Checks that a run continues with the options that decide what comes out.

    Raises:
        UserError: one of them differs.
    """
    now, before = options.plain(), content["options"]
    names = dict.fromkeys([*(field.name for field in fields(Options)), *ALL_OPTIONS])
    left = FREE | {"settings"}
    if all(str(values.get("data")).startswith(FOLDER) for values in (before, now)):
        left |= {"data"}  # a folder may move: its files decide
    differences = [
        f"--{name.replace('_', '-')} {before.get(name)} (not {now.get(name)})"
        for name in names
        if name not in left and before.get(name) != now.get(name)
    ]
    if differences:
        raise UserError(f"--resume: {options.resume} was trained with {', '.join(differences)}")


def restore(
    content: dict[str, Any], state: TrainingState, splits: Splits, options: Options
) -> None:
    """Continues `state` from a checkpoint's content.

    Raises:
        UserError: it is damaged, of a run with other options or data, or further along.
    """
    check_options(content, options)
    path, saved = options.resume, content["options"]
    try:
        if content["classes"] != list(splits.classes) or not _same_images(content, splits):
            raise UserError(
                f"--resume: {path} was trained with other data than there is now"
                + "; its checkpoint is an older one, which doesn't name the images"
                * (options.data.startswith(FOLDER) and content.get("split") is None)
            )
        state.load_state_dict(content)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"--resume: {path} is damaged: {error}".splitlines()[0]) from error
    if state.epoch > options.epochs or (state.epoch == options.epochs and state.batch):
        raise UserError(f"--resume: {path} has done {state.epoch} epochs, --epochs is fewer")
    if saved["epochs"] == options.epochs:
        return
    if state.scheduler.needs_epochs:
        raise UserError(
            f"--resume: --scheduler {options.scheduler} of {path} was made for --epochs"
            f" {saved['epochs']}, not {options.epochs}; --init {path} begins a new run with its"
            " weights"
        )
    if state.scheduler.follows_epochs:
        state.scheduler.stretch(state.step)
        lr = max(group["lr"] for group in state.optimizer.param_groups)
        world.say(
            f"the cosine schedule was made for {saved['epochs']} epochs and now ends with"
            f" {options.epochs}: the learning rate goes on with {lr:.3g}"
        )


def _same_images(content: dict[str, Any], splits: Splits) -> bool:
    """Returns whether a run's training images are those of now, but for files that are gone."""
    count = content["images"]
    if content.get("split") is None:  # other data, or a checkpoint that has no files' names
        return count == len(splits.train)
    return set(splits.train.names) <= set(names_of(content["split"], "train"))
