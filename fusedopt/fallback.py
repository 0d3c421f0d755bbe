"""torch's own step, for the parameters that the kernels don't cover."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from fusedopt.precision import describe

# What torch's own step takes: per group its index and the indices of its parameters.
Places = list[tuple[int, list[int]]]

SCALERS = ("grad_scale", "found_inf")  # what a GradScaler puts on an optimizer


def step_by_torch(
    optimizer: Optimizer,
    places: Places | Literal[True],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    clip: float | Tensor | None = None,
) -> None:
    """Runs torch's own step, with gradients unscaled first, where they are, as a GradScaler does.

    Args:
        optimizer: Nothing of it is replaced meanwhile that other threads or hooks may see, but what
            a GradScaler has put there, which torch's step doesn't expect.
        places: The parameters, by their places in the optimizer's groups; or True: the optimizer
            as it is, since its step runs code of the user's.
        grad_scale: What a GradScaler has multiplied the loss by, if it leaves that to `step`.
        found_inf: One number; if it isn't 0, nothing is done.
        clip: What torch's step sees gradients multiplied by; they keep their values.

    Raises:
        RuntimeError: If torch has no such optimizer, or a group has options of precision.
    """
    _refuse_precision(optimizer, places)
    if found_inf is not None and float(found_inf):
        return
    cls = torch_class(type(optimizer))
    if cls is None:
        raise RuntimeError(_why_not(optimizer, places))
    if places is True:
        groups = optimizer.param_groups
        with _unscaled(groups, grad_scale), _clipped(groups, clip):
            _step_as_it_is(optimizer, cls)
    else:
        groups = _groups(optimizer, places)
        with _unscaled(groups, grad_scale), _clipped(groups, clip):
            _step(optimizer, cls, groups)


@contextmanager
def _unscaled(groups: Iterable[dict[str, Any]], grad_scale: Tensor | None) -> Iterator[None]:
    """Unscales the gradients of these groups' parameters; scaled again if an exception comes."""
    if grad_scale is None:
        yield
        return
    scale = float(grad_scale)
    inverse = 1.0 / scale if scale else math.inf
    params = {id(param): param for group in groups for param in group["params"]}.values()
    grads = [param.grad for param in params if param.grad is not None]
    values = [grad._values() if grad.is_sparse else grad for grad in grads]
    with torch.no_grad():
        scaled = [value.clone() for value in values]
        for value in values:
            value.mul_(inverse)
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for value, before in zip(values, scaled, strict=True):
                value.copy_(before)
        raise


@contextmanager
def _clipped(groups: Iterable[dict[str, Any]], clip: float | Tensor | None) -> Iterator[None]:
    """Multiplies gradients in place, as clip_grad_norm_ does; afterwards they are as they were.

    A gradient that several parameters have is multiplied for each of them, as there.
    """
    if clip is None:
        yield
        return
    params = [param for group in groups for param in group["params"]]
    grads = [param.grad for param in params if param.grad is not None]
    values = [grad._values() if grad.is_sparse else grad for grad in grads]
    with torch.no_grad():
        unclipped = [value.clone() for value in values]
    done = 0
    try:
        for value in values:
            with _writable(value):
                value.mul_(clip)
            done += 1
        yield
    finally:
        for value, before in zip(values[:done], unclipped, strict=False):
            with _writable(value):
                value.copy_(before)


def _writable(value: Tensor) -> AbstractContextManager[Any]:
    """Where a gradient is written; an inference tensor is elsewhere, too, before torch raises."""
    return torch.inference_mode() if value.is_inference() else torch.no_grad()


def _groups(optimizer: Optimizer, places: Places) -> list[dict[str, Any]]:
    """Returns groups like the optimizer's, with the parameters and options that torch's step gets.

    They are the optimizer's own where nothing is to be changed.
    """
    every = list(optimizer.param_groups)
    return [_group(optimizer, every[index], params) for index, params in places]


def _group(optimizer: Optimizer, group: dict[str, Any], places: list[int]) -> dict[str, Any]:
    listed = list(group["params"])
    taken = [listed[i] for i in places]
    changes: dict[str, Any] = {}
    if len(taken) != len(listed):
        changes["params"] = taken
    if group.get("fused") and not all(_fits_fused(optimizer, param) for param in taken):
        changes["fused"] = None
    if group.get("nesterov") and group.get("foreach") is not False:
        changes["foreach"] = False  # torch's foreach path overwrites the gradients
    return {**group, **changes} if changes else group


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


def _step_as_it_is(optimizer: Optimizer, cls: type[Optimizer]) -> None:
    attributes = optimizer.__dict__
    hidden = {key: attributes.pop(key) for key in SCALERS if key in attributes}
    try:
        _step_function(cls)(optimizer)
    finally:
        attributes.update(hidden)


def _step(optimizer: Optimizer, cls: type[Optimizer], groups: list[dict[str, Any]]) -> None:
    """Has torch step these groups, as if they were all that the optimizer has.

    An object of torch's class stands for the optimizer. It shares all with it but its groups and
    what a GradScaler has put there. What the step notes in it is noted in the optimizer.
    """
    stand_in = object.__new__(cls)
    attributes = {k: v for k, v in optimizer.__dict__.items() if k not in SCALERS}
    stand_in.__dict__.update(attributes, param_groups=groups)
    _step_function(cls)(stand_in)
    for key, value in stand_in.__dict__.items():
        if key != "param_groups" and attributes.get(key, SCALERS) is not value:
            optimizer.__dict__[key] = value


def torch_class(cls: type) -> type[Optimizer] | None:
    """Returns the torch.optim class that an optimizer's is derived from, if there is one."""
    for base in cls.__mro__:
        if base.__module__.startswith("torch.optim") and "step" in base.__dict__:
            return None if base is Optimizer else base
    return None


def _why_not(optimizer: Any, places: Places | Literal[True]) -> str:
    """Says which parameter no kernel takes, of an optimizer that torch doesn't have."""
    first = (0, 0) if places is True else (places[0][0], places[0][1][0])
    return (
        f"param_groups[{first[0]}]['params'][{first[1]}]: {type(optimizer).__name__} has kernels"
        f" only, and torch.optim no step in their place ({_reason(optimizer, first)})"
    )


def _refuse_precision(optimizer: Any, places: Places | Literal[True]) -> None:
    """Raises if torch's own step would ignore how a group's numbers are to be stored."""
    groups = optimizer.param_groups
    if places is True:
        every = [] if isinstance(groups, Iterator) else [(i, 0, g) for i, g in enumerate(groups)]
    else:
        every = [(index, params[0], groups[index]) for index, params in places]
    for index, first, group in every:
        named = describe(group) if isinstance(group, Mapping) else ""
        if named and _has_params(group):
            raise RuntimeError(
                f"param_groups[{index}]['params'][{first}]: {named}, which torch's own step has"
                f" not, and no kernel takes it ({_reason(optimizer, (index, first))})"
            )


def _has_params(group: Mapping[str, Any]) -> bool:
    """Whether a group has something to step, or what only torch's step may iterate over."""
    params = group.get("params", ())
    return isinstance(params, Iterator) or any(True for _ in params)


def _reason(optimizer: Any, place: tuple[int, int]) -> str:
    """Says why no kernel takes a parameter."""
    found = optimizer.__dict__[optimizer._plan_key].explain(optimizer)
    why = next((reason for *found_at, reason in found if tuple(found_at) == place), "")
    return why or "see fusedopt.explain"


def _step_function(cls: type[Optimizer]) -> Any:
    """Returns its step without the hooks and profiling that ours runs."""
    step = cls.__dict__["step"]
    return step.__wrapped__ if getattr(step, "hooked", False) else step
