"""The optimizer phase of an optimizer and of its counterparts, by turns on copies."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer
from torch.utils._device import DeviceContext

from fusedopt import _C
from fusedopt.amp import replaces_step
from fusedopt.copies import Refused, copies_of, is_dtensor
from fusedopt.hooks import has_step_hooks, is_recorded
from fusedopt.optimizer import FusedOptimizer
from fusedopt.precision import REMAINDER
from fusedopt.turns import Turns
from fusedopt.twins import Implementation, implementations, make_twin

ROW = 6  # turns in a row, or a class that isn't the loop's finds its code in no cache
_KEPT = 64 << 20  # bytes of copies that may wait for the loop's next step


class Comparison:
    """Copies of an optimizer, one of which has a turn in each step of the loop.

    Attributes:
        turns: Of those that can be compared, by their labels.
        own: The label of the optimizer's own.
        phase: What is timed, such as ``clip + step + zero_grad``.
        notes: What isn't as in the loop, and what can't be compared.
        tensors: The number of gradients.
        elements: Theirs in all.
        is_large: Whether the copies are too large to be kept between steps. What the loop runs
            there makes little difference to them: caches don't hold them anyway.
    """

    def __init__(
        self, optimizer: Optimizer, limit: float | None, devices: Iterable[torch.device]
    ) -> None:
        """Makes the copies, and steps them once with each implementation.

        Args:
            optimizer: Stays as it is.
            limit: Of the gradients' norm; None: the optimizer's own `max_grad_norm`, if it has one.
            devices: Where there is work to wait for.

        Raises:
            Refused: If the optimizer can't be copied or has no counterpart.
        """
        if _is_watched():
            raise Refused(
                "a profiler, a mode or hooks of all optimizers would see the copies' steps"
            )
        own, *others = implementations(optimizer)
        described = _C.optimizers()[own.cls.__name__]
        self.notes = _notes(optimizer, own)
        keys = (*described["states"], *described["scalars"], REMAINDER)
        self._copies = copies_of(optimizer, keys)
        self._params = [twin for _, twin in self._copies.pairs]
        if limit is None and isinstance(optimizer, FusedOptimizer):
            limit = optimizer.max_grad_norm
        if limit is not None and any(is_dtensor(param) for param in self._params):
            self.notes.append(
                "clipping isn't in it: for a DTensor's norm ranks wait for each other"
            )
            limit = None
        self.own = own.label
        self.phase = "step + zero_grad" if limit is None else "clip + step + zero_grad"
        self.tensors = len(self._params)
        self.elements = sum(param.numel() for param in self._params)
        self.is_large = self._copies.size > _KEPT

        twins = {own.label: self._stepped(optimizer, own, self._copies.state, limit)}
        state = twins[own.label].state
        for other in others:
            try:
                twins[other.label] = self._stepped(optimizer, other, state, limit)
            except Refused as error:
                self.notes.append(str(error))
            except Exception as error:  # whatever torch's step raises, or a device's allocator
                self.notes.append(f"{other.label}: {describe_error(error)}")
        if all(each.is_ours for each in (own, *others)):
            self.notes.append(f"torch.optim has no {own.cls.__name__} to compare with")
        parts = {
            label: (self._copies.set_gradients, partial(_run_phase, twin, self._params, limit))
            for label, twin in twins.items()
        }
        self.turns = Turns(parts, devices, row=1 if self.is_large else ROW)

    def can_go_on(self) -> bool:
        """Whether there are gradients to copy, and nobody who watches steps."""
        has_some = any(param.grad is not None for param, _ in self._copies.pairs)
        return has_some and not _is_watched()

    def _stepped(
        self,
        optimizer: Optimizer,
        implementation: Implementation,
        state: Mapping[Tensor, Mapping[str, Any]],
        limit: float | None,
    ) -> Optimizer:
        """Returns a twin whose first phase is over, which makes state that isn't there yet."""
        self._copies.set_gradients()
        twin = make_twin(optimizer, implementation, self._copies, state, limit)
        _run_phase(twin, self._params, limit)
        return twin


def describe_error(error: Exception) -> str:
    """Says why something couldn't be measured: in the first line of an exception's message.

    torch's may be of 2,000 characters: for a missing operator it names all devices that have it.
    """
    text = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
    return textwrap.shorten(text.splitlines()[0], 200, placeholder=" ...")


def _run_phase(optimizer: Optimizer, params: list[Tensor], limit: float | None) -> None:
    """Clips, steps and drops the gradients; fusedopt's clip within the step."""
    if limit is not None and not isinstance(optimizer, FusedOptimizer):
        torch.nn.utils.clip_grad_norm_(params, limit)
    optimizer.step()
    optimizer.zero_grad()


def _notes(optimizer: Optimizer, own: Implementation) -> list[str]:
    """Says which code of the optimizer's phase no copy runs."""
    notes = []
    if type(optimizer) is not own.cls:
        notes.append(f"copies are of {own.label}: what {type(optimizer).__name__} adds isn't timed")
    if replaces_step(optimizer):
        notes.append("what stands in the place of its step isn't timed")
    if has_step_hooks(optimizer):
        notes.append("its step hooks aren't timed")
    return notes


def _is_watched() -> bool:
    """Whether somebody is told of all steps or operations, and would be told of the copies'.

    Those are hooks of all optimizers, profilers, and modes; the mode that
    `torch.set_default_device` sets only makes tensors elsewhere.
    """
    stack = range(torch._C._len_torch_function_stack())
    modes = [type(torch._C._get_function_stack_at(i)) for i in stack]
    return bool(
        torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
        or is_recorded()
        or any(mode is not DeviceContext for mode in modes)
    )
