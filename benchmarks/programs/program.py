"""What a program is to the benchmark, and the implementations that it runs with."""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import fusedopt

# torch's default, which is what most have; its fastest path; ours with nothing changed but the
# class; ours with clipping and averages by fusedopt, too.
TORCH, FUSED, CLASS, WHOLE = "torch", "torch, fused", "fusedopt", "fusedopt, whole phase"


class Stopwatch:
    """Adds up the time that functions take.

    Attributes:
        seconds: Of all calls so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


@dataclass(frozen=True)
class Side:
    """One of the implementations.

    Attributes:
        name: `TORCH`, `FUSED`, `CLASS` or `WHOLE`.
        stopwatch: Of the optimizer phase; None in the runs whose time counts.
    """

    name: str
    stopwatch: Stopwatch | None = None

    @property
    def module(self) -> ModuleType:
        """Where the optimizer's class is."""
        return fusedopt if self.name in (CLASS, WHOLE) else torch.optim

    @property
    def clip(self) -> Callable[..., Tensor]:
        """The function that clips."""
        return fusedopt.clip_grad_norm_ if self.name == WHOLE else nn.utils.clip_grad_norm_

    @property
    def averages(self) -> ModuleType:
        """Where the class of moving averages is."""
        return fusedopt.swa_utils if self.name == WHOLE else torch.optim.swa_utils

    def options(self, optimizer: str) -> dict[str, Any]:
        """What chooses torch's fastest path: foreach, where a class has no fused one."""
        return {fastest_path(optimizer): True} if self.name == FUSED else {}

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of the optimizer phase, timed if that is asked for."""
        return function if self.stopwatch is None else self.stopwatch.around(function)

    def watch(self, optimizer: Optimizer) -> None:
        """Times what a library calls of an optimizer."""
        if self.stopwatch is not None:
            for name in ("step", "zero_grad"):
                setattr(optimizer, name, self.timed(getattr(optimizer, name)))


def fastest_path(optimizer: str) -> str:
    """The option of torch's class that is fastest on the CPU."""
    return "fused" if hasattr(torch, f"_fused_{optimizer.lower()}_") else "foreach"


class Phase:
    """The end of a training step: clips, steps, drops the gradients and averages.

    Args:
        side: Whose functions are called. The whole phase of ours clips within the step.
        optimizer: The class.
        model: Whose parameters are trained.
        params: The same, or groups of them; default: the model's.
        limit: Of the gradients' norm; None: not clipped.
        decay: Of the moving average; None: there is none.
        options: Of the optimizer.

    Attributes:
        optimizer: For schedulers.
    """

    def __init__(
        self,
        side: Side,
        optimizer: str,
        model: nn.Module,
        params: Iterable[Any] | None = None,
        *,
        limit: float | None = None,
        decay: float | None = None,
        **options: Any,
    ) -> None:
        self._model, self._clip, self._limit = model, side.clip, limit
        if side.name == WHOLE and limit is not None:
            options["max_grad_norm"], self._limit = limit, None
        params = model.parameters() if params is None else params
        cls = getattr(side.module, optimizer)
        self.optimizer: Optimizer = cls(params, **options, **side.options(optimizer))
        self._average = None
        if decay is not None:
            update = side.averages.get_ema_multi_avg_fn(decay)
            self._average = side.averages.AveragedModel(model, multi_avg_fn=update)
        self.end_step = side.timed(self._end_step)

    @property
    def trained(self) -> nn.Module:
        """The network that came out."""
        return self._model if self._average is None else self._average.module

    def _end_step(self) -> None:
        if self._limit is not None:
            self._clip(self._model.parameters(), self._limit)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self._average is not None:
            self._average.update_parameters(self._model)


@dataclass(frozen=True)
class Run:
    """A program that is ready to begin.

    Attributes:
        train: Runs it; its time counts.
        result: What it has learned, once it has run.
        parts: Parts of `train`, by name, each with the time that it took.
    """

    train: Callable[[], object]
    result: Callable[[], float]
    parts: Mapping[str, Stopwatch] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """One program.

    Attributes:
        name: What `--program` takes and the chart prints.
        title: What it is, in words.
        optimizer: The class.
        make: Prepares it for a side, a seed and a share of its full length. The runs of all sides
            begin with the same numbers and see the same data.
        result: What `Run.result` returns.
        whole: Whether its phase has more than step and zero_grad.
        needs: The libraries that it imports, as their modules.
        profiled: How much of it tells the phase's share of the time.
    """

    name: str
    title: str
    optimizer: str
    make: Callable[[Side, int, float], Run]
    result: str
    whole: bool = False
    needs: tuple[str, ...] = ()
    profiled: float = 0.25

    @property
    def sides(self) -> tuple[str, ...]:
        """What it is run with."""
        return (TORCH, FUSED, CLASS, WHOLE) if self.whole else (TORCH, FUSED, CLASS)

    @property
    def missing(self) -> list[str]:
        """The libraries that aren't there."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def shortened(count: int, scale: float, least: int = 2) -> int:
    """So many steps of a program that is run in part."""
    return max(least, round(count * scale))
