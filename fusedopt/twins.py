"""Optimizers of copies: of an optimizer's own class, and of those that could take its place."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fusedopt import _C
from fusedopt.copies import Copies, Refused
from fusedopt.optimizer import FusedOptimizer
from fusedopt.precision import describe

_DEFAULT: dict[str, Any] = {"foreach": None, "fused": None}
_FUSED: dict[str, Any] = {"foreach": None, "fused": True}
_MOVING = ("step", "mu_product")  # numbers whose device depends on these options,
_STAYING = ("ASGD",)  # but not here
_HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Implementation:
    """A class, and the options that choose how it steps.

    Attributes:
        cls: One of fusedopt's or of torch.optim's.
        options: What groups get in the place of theirs; none for an optimizer's own.
        label: The class and, where they choose, `foreach` and `fused`.
    """

    cls: type[Optimizer]
    options: Mapping[str, Any]
    label: str

    @property
    def is_ours(self) -> bool:
        """Whether it is fusedopt's."""
        return issubclass(self.cls, FusedOptimizer)


def implementations(optimizer: Optimizer) -> list[Implementation]:
    """Returns the optimizer's own first, then fusedopt's, torch's default and torch's fused.

    Raises:
        Refused: If its class is none of fusedopt's and none that fusedopt replaces.
    """
    ours, torchs = counterparts(type(optimizer))
    own = ours if isinstance(optimizer, FusedOptimizer) else torchs
    paths: list[tuple[type[Optimizer] | None, Mapping[str, Any]]] = [
        (own, {}),
        (ours, _DEFAULT),
        (torchs, _DEFAULT),
    ]
    if torchs is not None and "fused" in inspect.signature(torchs).parameters:
        paths.append((torchs, _FUSED))
    found: dict[str, Implementation] = {}
    for cls, options in paths:
        if cls is not None:
            label = _label(cls, [{**group, **options} for group in optimizer.param_groups])
            found.setdefault(label, Implementation(cls, options, label))
    return list(found.values())


def counterparts(cls: type[Optimizer]) -> tuple[type[Optimizer], type[Optimizer] | None]:
    """Returns fusedopt's class, and torch.optim's if there is one.

    Raises:
        Refused: If the class is derived from neither.
    """
    import fusedopt

    for base in cls.__mro__:
        name = base.__name__
        ours = getattr(fusedopt, name) if name in _C.optimizers() else None
        if ours is not None and (base is ours or _is_torchs(base)):
            torchs = (c for c in ours.__mro__ if c.__name__ == name and _is_torchs(c))
            return ours, next(torchs, None)
    raise Refused(
        f"no counterpart: {cls.__name__} is neither an optimizer of fusedopt nor one of"
        " torch.optim that fusedopt replaces; if it wraps another optimizer, measure that one"
    )


def make_twin(
    optimizer: Optimizer,
    implementation: Implementation,
    copies: Copies,
    state: Mapping[Tensor, Mapping[str, Any]],
    max_grad_norm: float | None,
) -> Optimizer:
    """Makes an optimizer of the copies, as unpickling does: without a constructor or hooks.

    Args:
        optimizer: Whose defaults it gets.
        implementation: Its class and options.
        copies: What it steps.
        state: It shares what has a parameter's size. It gets single numbers of its own, where
            torch's step with these options looks for them.
        max_grad_norm: What it clips to, if it is fusedopt's.

    Raises:
        Refused: If the class can't step these tensors as the optimizer's does.
    """
    scalars = _C.optimizers()[implementation.cls.__name__]["scalars"]
    groups: list[dict[str, Any]] = []
    states: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
    # The optimizer's own numbers are where they belong.
    moves = bool(implementation.options) and implementation.cls.__name__ not in _STAYING
    for group in copies.groups:
        group = {**group, **implementation.options, "params": list(group["params"])}
        _refuse(implementation, group, state)
        groups.append(group)
        for param in group["params"]:
            if state.get(param):  # torch's __setstate__ takes none that is empty
                states[param] = {
                    key: _own_number(key, value, param, group, moves) if key in scalars else value
                    for key, value in state[param].items()
                }
    twin = implementation.cls.__new__(implementation.cls)
    content = {"defaults": dict(optimizer.defaults), "state": states, "param_groups": groups}
    twin.__setstate__(content)
    if implementation.is_ours and max_grad_norm is not None:
        twin.max_grad_norm = max_grad_norm  # type: ignore[attr-defined]
    return twin


def _is_torchs(cls: type) -> bool:
    return cls.__module__.startswith("torch.optim.")


def _label(cls: type[Optimizer], groups: list[dict[str, Any]]) -> str:
    is_ours = issubclass(cls, FusedOptimizer)
    chosen = []
    for key in ("foreach", "fused"):
        values = {group.get(key) for group in groups}
        if is_ours:  # they choose nothing but torch's code, by fused=False
            values = {False if key == "fused" and value is False else None for value in values}
        if len(values) > 1:
            chosen.append(f"{key} by group")
        elif values != {None}:
            chosen.append(f"{key}={values.pop()}")
    package = "fusedopt" if is_ours else "torch.optim"
    return ", ".join([f"{package}.{cls.__name__}", *chosen])


def _own_number(key: str, value: Any, param: Tensor, group: Mapping[str, Any], moves: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    if not moves or key not in _MOVING:
        return value.clone()
    on_device = group.get("capturable") or group.get("fused")
    return value.to(param.device if on_device else "cpu", copy=True)


def _refuse(
    implementation: Implementation,
    group: Mapping[str, Any],
    state: Mapping[Tensor, Mapping[str, Any]],
) -> None:
    """Raises for what torch's class ignores, and where its fused step on the CPU goes wrong.

    That reads and writes memory of as many elements behind an address, whatever the strides are:
    an expanded gradient has less. Of 16-bit parameters SGD's updates a part only.
    """
    label = implementation.label
    if implementation.is_ours:
        return
    if named := describe(group):
        raise Refused(f"{label} has no {named}")
    for param in group["params"] if group.get("fused") else ():
        if param.device.type != "cpu" or param.grad is None:
            continue
        if param.grad.layout != torch.strided:  # torch's step says so itself
            continue
        if implementation.cls.__name__ == "SGD" and param.dtype in _HALVES:
            raise Refused(f"{label} doesn't step all elements of 16-bit parameters")
        tensors = [param, param.grad, *state.get(param, {}).values()]
        if any(isinstance(t, Tensor) and not _is_dense_like(t, param) for t in tensors):
            raise Refused(f"{label} is wrong for tensors with these strides")


def _is_dense_like(tensor: Tensor, param: Tensor) -> bool:
    """Whether a tensor has no gaps and lies like its parameter; or is a single number."""
    if tensor.shape != param.shape or tensor.layout != torch.strided:
        return tensor.numel() == 1
    return _strides(tensor) == _strides(param) == _strides(torch.empty_like(param))


def _strides(tensor: Tensor) -> list[int]:
    """Returns those that matter."""
    return [s for s, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1]
