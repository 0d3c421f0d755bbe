"""Checkpoints that continue a run bit for bit, and never lose the one before."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fusedopt.train.cli import Options, UserError

# A run goes on bit for bit only with the same value of each. --impl is not among them: a
# fusedopt checkpoint continues with torch.optim, and the other way round.
SETTINGS = ["model", "optimizer", "lr", "weight_decay", "momentum", "gamma", "batch_size", "seed"]


@dataclass
class TrainingState:
    """All that changes while training.

    Attributes:
        model: its parameters and buffers.
        optimizer: its state and options.
        scheduler: of the learning rate.
        generator: draws the order of the images and their shifts.
        epoch: number of epochs done.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    generator: torch.Generator
    epoch: int = 0


def save(path: Path, state: TrainingState, options: Options) -> None:
    """Writes a checkpoint beside `path`, then moves it there: `path` is always a whole one."""
    content = {
        "settings": {name: getattr(options, name) for name in SETTINGS},
        "epoch": state.epoch,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict(),
        "generator": state.generator.get_state(),
        "torch_generator": torch.get_rng_state(),
    }
    unfinished = path.with_name(path.name + ".part")
    try:
        with unfinished.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into the latter
        raise UserError(f"--checkpoint: cannot write {path}: {error}".splitlines()[0]) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    """Returns a checkpoint's content.

    Raises:
        UserError: there is no such file, or it is none of ours.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise UserError(f"--resume: cannot read {path}: {error.strerror}") from error
    except Exception as error:  # torch.load raises whatever the damage makes it stumble over
        raise UserError(f"--resume: {path} is damaged, or not a checkpoint") from error
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
        raise UserError(f"--resume: {path} is not a checkpoint of this script")
    return content


def load(path: Path, state: TrainingState, options: Options) -> None:
    """Continues `state` from a checkpoint.

    Raises:
        UserError: the file is missing, damaged, of a run with other settings, or further along.
    """
    device = next(state.model.parameters()).device
    content = _read(path, device)
    saved = content["settings"]
    differences = [
        f"--{name.replace('_', '-')} {saved.get(name)} (not {getattr(options, name)})"
        for name in SETTINGS
        if saved.get(name) != getattr(options, name)
    ]
    if differences:
        raise UserError(f"--resume: {path} was trained with {', '.join(differences)}")
    try:
        state.epoch = int(content["epoch"])
        state.model.load_state_dict(content["model"])
        state.optimizer.load_state_dict(content["optimizer"])
        state.scheduler.load_state_dict(content["scheduler"])
        state.generator.set_state(content["generator"].cpu())
        torch.set_rng_state(content["torch_generator"].cpu())
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"--resume: {path} is damaged: {error}".splitlines()[0]) from error
    if state.epoch > options.epochs:
        raise UserError(f"--resume: {path} has done {state.epoch} epochs, --epochs is fewer")
