"""torch's own step, for the parameters that the kernels don't cover."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# What torch's own step takes: per group its index and the indices of its parameters.
Places = list[tuple[int, list[int]]]


def step_by_torch(
    optimizer: Optimizer, places: Places, grad_scale: Tensor | None, found_inf: Tensor | None
) -> None:
    """Runs torch's own step on some parameters, with gradients unscaled first.

    Args:
        optimizer: Nothing of it is replaced meanwhile that other threads or hooks may see.
        places: The parameters, by their places in the optimizer's groups.
        grad_scale: What a GradScaler has multiplied the loss by, if it leaves that to `step`.
        found_inf: One number; if it isn't 0, nothing is done.
    """
    if found_inf is not None and float(found_inf):
        return
    groups = [_group(optimizer, index, params) for index, params in places]
    params = list({id(p): p for group in groups for p in group["params"]}.values())
    before = [param.grad for param in params]
    try:
        if grad_scale is not None:
            inverse = 1.0 / float(grad_scale)
            for param, grad in zip(params, before, strict=True):
                if grad is not None:
                    param.grad = grad * inverse
        _step(optimizer, groups)
    except BaseException:
        for param, grad in zip(params, before, strict=True):
            param.grad = grad
        raise


def _group(optimizer: Optimizer, index: int, places: list[int]) -> dict[str, Any]:
    """Returns the group, or one like it with the parameters and options that torch's step gets."""
    group = optimizer.param_groups[index]
    listed = list(group["params"])
    changes: dict[str, Any] = {}
    if len(places) != len(listed):
        changes["params"] = [listed[i] for i in places]
    if group.get("fused") and not all(_fits_fused(optimizer, listed[i]) for i in places):
        changes["fused"] = None
    if group.get("nesterov") and group.get("foreach") is not False:
        changes["foreach"] = False  # torch's foreach path overwrites the gradients
    if changes:
        group = copy.copy(group)
        group.update(changes)
    return group


def _fits_fused(optimizer: Optimizer, param: Tensor) -> bool:
    """Whether torch's fused step may take what our kernels don't.

    Not on the CPU, where torch's don't cover it either; and not with a step count on another
    device, as a checkpoint made without `fused=True` has it: its kernel takes the address as it is.
    """
    if param.device.type == "cpu":
        return False
    state = optimizer.state.get(param, {})
    step = state.get("step", param)
    return torch.is_tensor(step) and step.device == param.device


def _step(optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
    """Has torch step these groups, as if they were all that the optimizer has.

    Unless they are, an object stands for the optimizer that shares all with it but its groups and
    what a GradScaler has put there. What the step notes in it is noted in the optimizer.
    """
    hidden = {"grad_scale", "found_inf"} & optimizer.__dict__.keys()
    if not hidden and _same(groups, optimizer.param_groups):
        return _torch_step_function(type(optimizer))(optimizer)
    stand_in = object.__new__(type(optimizer))
    attributes = {k: v for k, v in optimizer.__dict__.items() if k not in hidden}
    stand_in.__dict__.update(attributes, param_groups=groups)
    _torch_step_function(type(optimizer))(stand_in)
    for key, value in stand_in.__dict__.items():
        if key != "param_groups" and attributes.get(key, hidden) is not value:
            optimizer.__dict__[key] = value


def _same(some: Iterable[Any], others: Iterable[Any]) -> bool:
    first, second = list(some), list(others)
    return len(first) == len(second) and all(a is b for a, b in zip(first, second, strict=True))


def _torch_step_function(cls: type) -> Callable[[Optimizer], Any]:
    """Returns the torch.optim class's step, without the hooks and profiling that ours runs."""
    for base in cls.__mro__:
        step = base.__dict__.get("step")
        if base.__module__.startswith("torch.optim") and step is not None:
            return step.__wrapped__ if getattr(step, "hooked", False) else step
    raise TypeError(f"{cls.__name__} has no torch.optim base class")
