"""All that changes while training, and how it becomes a checkpoint's content."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from fusedopt.train import strategy, world
from fusedopt.train.mixing import Mix
from fusedopt.train.recipe import EarlyStopping
from fusedopt.train.schedule import Scheduler

Row = dict[str, float]


class StepTimer:
    """Sums the time that a device spends in `with` blocks, and on CUDA waits for nothing.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        self._start = torch.cuda.Event(enable_timing=True) if self._cuda else time.perf_counter()
        if self._cuda:
            self._start.record(torch.cuda.current_stream(self._device))

    def __exit__(self, *error: object) -> None:
        if self._cuda:
            end = torch.cuda.Event(enable_timing=True)
            end.record(torch.cuda.current_stream(self._device))
            self._events.append((self._start, end))
        else:
            self._seconds += time.perf_counter() - self._start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within a `with` block of this timer, leaves a part of it out."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    @property
    def seconds(self) -> float:
        """The sum so far; reading it waits until the device is done."""
        for start, end in self._events:
            end.synchronize()
            self._seconds += start.elapsed_time(end) / 1e3
        self._events.clear()
        return self._seconds

    @seconds.setter
    def seconds(self, value: float) -> None:
        self._events.clear()
        self._seconds = value


@dataclass
class TrainingState:
    """All that changes while training.

    Attributes:
        model: its parameters and buffers.
        synchronized: the model as training calls it, so that processes share their gradients.
        optimizer: its state and options.
        scheduler: of the learning rate.
        scaler: of the loss, for float16.
        ema: moving average of the model's weights, or None.
        stopping: the best epoch so far.
        generator: draws the augmentation of the images.
        timer: seconds in the optimizer phase in the epoch that has begun.
        totals: of the epoch that has begun: sums of loss and of correct answers, images; float64.
        class_weights: (classes,), float32, on the device: of the training loss, or None.
        mixing: of a batch's images and labels, or None.
        nonfinite: int64, on the device: the first step whose loss isn't finite, 0 without one.
        seconds: of the epoch that has begun.
        epoch: number of epochs done.
        batch: batches done in the epoch that has begun.
        step: optimizer steps done in all.
        rows: figures of each epoch done.
    """

    model: nn.Module
    synchronized: nn.Module
    optimizer: Optimizer
    scheduler: Scheduler
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None
    stopping: EarlyStopping
    generator: torch.Generator
    timer: StepTimer
    totals: Tensor
    class_weights: Tensor | None = None
    mixing: Mix | None = None
    nonfinite: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    seconds: float = 0.0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    rows: list[Row] = field(default_factory=list)

    @property
    def done(self) -> str:
        """What has been trained so far, in words."""
        epochs, batches = "s" * (self.epoch != 1), "es" * (self.batch != 1)
        return f"{self.epoch} epoch{epochs} and {self.batch} batch{batches}"

    @property
    def averaged(self) -> nn.Module:
        """The network to validate and test: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def watch(self, loss: Tensor) -> None:
        """Notes whether the loss of the step that is being made is finite; waits for no device."""
        first = loss.detach().isfinite().logical_not() & (self.nonfinite == 0)
        self.nonfinite += first * (self.step + 1)

    def next_epoch(self) -> None:
        """Counts an epoch as done, and begins to count anew."""
        self.epoch += 1
        self.batch, self.seconds, self.timer.seconds = 0, 0.0, 0.0
        self.totals.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Returns what `load_state_dict` takes, the random generators' states included.

        All processes must call it. The first one's result is for all of them, however many there
        will be.
        """
        totals = self.totals.clone()
        world.add_up(totals)
        world.share_buffers(self.model)
        first, *others = world.gather(self._generators())
        content = {
            "model": self.model.state_dict(),
            "optimizer": strategy.optimizer_state(self.optimizer),
            "scheduler": self.scheduler.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "stopping": self.stopping.state_dict(),
            **first,
            "other_generators": others,
            "totals": totals,
            "seconds": self.seconds,
            "optimizer_seconds": self.timer.seconds,
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "rows": self.rows,
        }
        return strategy.whole(content)

    def _generators(self) -> dict[str, Any]:
        """Returns the states of this process's random generators."""
        cuda = self.totals.device.type == "cuda"
        return {
            "generator": self.generator.get_state(),
            "torch_generator": torch.get_rng_state(),
            "cuda_generator": torch.cuda.get_rng_state(self.totals.device) if cuda else None,
        }

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Goes on from a saved state.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError, AttributeError: it is no such state.
        """
        self.model.load_state_dict(strategy.cut(content["model"], self.model))
        strategy.load_optimizer_state(self.optimizer, content["optimizer"])
        self.scheduler.scheduler.load_state_dict(content["scheduler"])
        self.scaler.load_state_dict(content["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(strategy.cut(content["ema"], self.ema))
        self.stopping.load_state_dict(content["stopping"])
        if self.stopping.weights is not None:
            self.stopping.weights = strategy.cut(self.stopping.weights, self.averaged)
        saved = [content, *content["other_generators"]]
        if world.rank() < len(saved):  # else there were fewer, and this process begins its own
            self._set_generators(saved[world.rank()])
        self.totals.copy_(content["totals"] if world.rank() == 0 else torch.zeros(3))
        self.timer.seconds = float(content["optimizer_seconds"])
        self.seconds = float(content["seconds"])
        self.epoch, self.batch = int(content["epoch"]), int(content["batch"])
        self.step, self.rows = int(content["step"]), list(content["rows"])

    def _set_generators(self, saved: dict[str, Any]) -> None:
        self.generator.set_state(saved["generator"])
        torch.set_rng_state(saved["torch_generator"])
        if saved["cuda_generator"] is not None and self.totals.device.type == "cuda":
            torch.cuda.set_rng_state(saved["cuda_generator"], self.totals.device)
