"""Schedulers of torch.optim.lr_scheduler by name, with arguments that fit the run."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from fusedopt.train.options import Options, UserError

SCHEDULERS = {
    "none": "ConstantLR",
    "step": "StepLR",
    "multistep": "MultiStepLR",
    "exponential": "ExponentialLR",
    "cosine": "CosineAnnealingLR",
    "cosine-restarts": "CosineAnnealingWarmRestarts",
    "one-cycle": "OneCycleLR",
    "cyclic": "CyclicLR",
    "plateau": "ReduceLROnPlateau",
    "linear": "LinearLR",
    "constant": "ConstantLR",
    "polynomial": "PolynomialLR",
}
# They are made of functions or of other schedulers, which a command line can't give.
_NOT_BY_NAME = {"LRScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"}
_EACH_STEP = {"OneCycleLR", "CyclicLR"}


class Scheduler:
    """A scheduler of torch.optim.lr_scheduler, and when to step it.

    Args:
        optimizer: its learning rates are scheduled.
        options: name, arguments and interval of the scheduler.
        steps_per_epoch: optimizer steps in an epoch.

    Raises:
        UserError: no such scheduler, or it can't be made of these arguments.
    """

    def __init__(self, optimizer: Optimizer, options: Options, steps_per_epoch: int) -> None:
        name = SCHEDULERS.get(options.scheduler, options.scheduler)
        if name not in lr_scheduler.__all__ or name in _NOT_BY_NAME:
            known = ", ".join([*SCHEDULERS, "or a class of torch.optim.lr_scheduler"])
            raise UserError(f"--scheduler: {name!r} can't be had by name; there are {known}")
        default = "step" if name in _EACH_STEP else "epoch"
        self.interval = options.scheduler_interval or default
        self.by_loss = name == "ReduceLROnPlateau"
        if self.by_loss and self.interval == "step":
            raise UserError("--scheduler-interval: plateau looks at the epoch's validation loss")
        steps = options.epochs * (steps_per_epoch if self.interval == "step" else 1)
        given = dict(options.scheduler_arg)
        self.needs_epochs = False
        arguments = self._arguments(name, given, options, optimizer, steps)
        try:
            self._try_out(name, arguments, optimizer)
            self.scheduler: LRScheduler = getattr(lr_scheduler, name)(optimizer, **arguments)
        except (TypeError, ValueError, IndexError, KeyError, ZeroDivisionError) as error:
            text = str(error).replace(f"{name}.__init__()", name)
            raise UserError(f"--scheduler {options.scheduler}: {text} (--scheduler-arg)") from error
        if getattr(self.scheduler, "total_steps", steps) < steps:
            raise UserError(
                f"--scheduler {options.scheduler}: its {self.scheduler.total_steps} steps are"
                f" fewer than the {steps} of training (--scheduler-arg)"
            )

    def _try_out(self, name: str, arguments: dict[str, Any], optimizer: Optimizer) -> None:
        """Steps such a scheduler twice: many look at their arguments only then."""
        groups = [{"params": [torch.zeros(1)], "lr": g["lr"]} for g in optimizer.param_groups]
        twin = torch.optim.SGD(groups, momentum=0.9)
        scheduler = getattr(lr_scheduler, name)(twin, **copy.deepcopy(arguments))
        for _ in range(min(2, getattr(scheduler, "total_steps", 2))):
            twin.step()
            scheduler.step(*[0.0] * self.by_loss)

    def _arguments(
        self, name: str, given: dict[str, Any], options: Options, optimizer: Optimizer, steps: int
    ) -> dict[str, Any]:
        """Returns what was given, with defaults that fit the run."""
        groups = optimizer.param_groups
        defaults: dict[str, Any] = {
            "ExponentialLR": {"gamma": 0.85},
            "CosineAnnealingLR": {"T_max": steps},
            "PolynomialLR": {"total_iters": steps},
            "OneCycleLR": {"max_lr": options.lr, "total_steps": steps},
        }.get(name, {})
        if options.scheduler == "none":
            defaults = {"factor": 1.0}
        if "epochs" in given:
            del defaults["total_steps"]
        # Such a default is part of the schedule, so that epochs can't be added later.
        self.needs_epochs = bool(
            ({"T_max", "total_iters", "total_steps"} & set(defaults)) - set(given)
        )
        if name in _EACH_STEP and not options.momentum and "betas" not in groups[0]:
            defaults["cycle_momentum"] = False  # there is none; torch would switch it on
        arguments = defaults | given
        for key in {"max_lr", "base_lr"} & set(arguments):
            if isinstance(arguments[key], (int, float)) and options.lr > 0:  # keep depths apart
                scales = [group["lr"] / options.lr for group in groups]
                arguments[key] = [arguments[key] * scale for scale in scales]
        return arguments

    def after_step(self) -> None:
        """Steps a scheduler that goes by optimizer steps."""
        if self.interval == "step":
            self.scheduler.step()

    def after_epoch(self, validation_loss: float) -> None:
        """Steps a scheduler that goes by epochs, or by the validation loss."""
        if self.by_loss:
            self.scheduler.step(validation_loss)
        elif self.interval == "epoch":
            self.scheduler.step()
