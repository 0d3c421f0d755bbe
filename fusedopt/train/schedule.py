"""Schedulers of torch.optim.lr_scheduler by name, with arguments that fit the run."""

from __future__ import annotations

import copy
import inspect
import math
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
_COSINE = "CosineAnnealingLR"


def _check_values(name: str, given: dict[str, Any]) -> None:
    """Raises a UserError for words where the scheduler's class has numbers."""
    parameters = inspect.signature(getattr(lr_scheduler, name)).parameters
    for key, value in given.items():
        wanted = str(parameters[key].annotation) if key in parameters else "str"
        if isinstance(value, str) and not ("str" in wanted or "Literal" in wanted):
            numbers = "must be a number" + " or a list of them" * ("[" in wanted)
            raise UserError(f"--scheduler-arg: {key} {numbers}, not {value!r}")


class Scheduler:
    """A scheduler of torch.optim.lr_scheduler, after a warm-up, and when to step it.

    In the warm-up learning rates rise evenly, with each step, to those that the scheduler begins
    with. Only then does it begin.

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
        given = dict(options.scheduler_arg)
        self.follows_epochs = name == _COSINE and "T_max" not in given
        default = "step" if name in _EACH_STEP or self.follows_epochs else "epoch"
        self.interval = options.scheduler_interval or default
        self.by_loss = name == "ReduceLROnPlateau"
        if self.by_loss and self.interval == "step":
            raise UserError("--scheduler-interval: plateau looks at the epoch's validation loss")
        if options.warmup >= options.epochs:
            raise UserError(
                f"--warmup: {options.warmup:g} epochs leave none of {options.epochs} to train in"
            )
        self.steps_per_epoch = steps_per_epoch
        self._warmup = round(options.warmup * steps_per_epoch)
        steps = options.epochs * steps_per_epoch - self._warmup
        if self.interval == "epoch":
            steps = options.epochs - int(options.warmup)
        self._steps, self._optimizer = steps, optimizer
        _check_values(name, given)
        self.needs_epochs = False
        arguments = self._arguments(name, given, options, optimizer, steps)
        try:
            self._try_out(name, arguments, optimizer)
            self.scheduler: LRScheduler = getattr(lr_scheduler, name)(optimizer, **arguments)
        except (TypeError, ValueError, IndexError, KeyError, ZeroDivisionError) as error:
            text = str(error).replace(f"{name}.__init__()", name)
            if not isinstance(error, ValueError) and "argument" not in text:  # Python's own words
                values = ", ".join(f"{key}={value!r}" for key, value in given.items())
                text = f"{name} can't work with {values}"
            raise UserError(f"--scheduler {options.scheduler}: {text} (--scheduler-arg)") from error
        if getattr(self.scheduler, "total_steps", steps) < steps:
            raise UserError(
                f"--scheduler {options.scheduler}: its {self.scheduler.total_steps} steps are"
                f" fewer than the {steps} of training (--scheduler-arg)"
            )
        self._first = [group["lr"] for group in optimizer.param_groups]
        self._warm_up(0)

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
        self.needs_epochs = bool(({"total_iters", "total_steps"} & set(defaults)) - set(given))
        if name in _EACH_STEP and not groups[0].get("momentum") and "betas" not in groups[0]:
            defaults["cycle_momentum"] = False  # there is none; torch would switch it on
        arguments = defaults | given
        for key in {"max_lr", "base_lr"} & set(arguments):
            if isinstance(arguments[key], (int, float)) and options.lr > 0:  # keep depths apart
                scales = [group["lr"] / options.lr for group in groups]
                arguments[key] = [arguments[key] * scale for scale in scales]
        return arguments

    def _warm_up(self, step: int) -> None:
        for group, lr in zip(self._optimizer.param_groups, self._first, strict=True):
            group["lr"] = lr * (step + 1) / (self._warmup + 1) if step < self._warmup else lr

    def after_step(self, step: int) -> None:
        """Does what is due after an optimizer step.

        Args:
            step: how many there were.
        """
        if step <= self._warmup:
            self._warm_up(step)
        elif self.interval == "step":
            self.scheduler.step()

    def after_epoch(self, step: int, validation_loss: float) -> None:
        """Steps a scheduler that goes by epochs, or by the validation loss.

        Args:
            step: how many optimizer steps there were.
            validation_loss: after the epoch.
        """
        if step <= self._warmup:
            return
        if self.by_loss:
            self.scheduler.step(validation_loss)
        elif self.interval == "epoch":
            self.scheduler.step()

    def stretch(self, step: int) -> None:
        """Makes a cosine that was loaded end with the epochs that there are now.

        Args:
            step: how many optimizer steps there were.
        """
        cosine: Any = self.scheduler
        cosine.T_max = self._steps
        if step <= self._warmup:
            return
        share = (1 + math.cos(math.pi * cosine.last_epoch / cosine.T_max)) / 2
        for group, lr in zip(self._optimizer.param_groups, cosine.base_lrs, strict=True):
            group["lr"] = cosine.eta_min + (lr - cosine.eta_min) * share
        cosine._last_lr = [group["lr"] for group in self._optimizer.param_groups]
