"""torch's own step, for the parameters that the kernels don't cover."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from fusedopt.precision import describe

# What torch's own step takes: of each group its index, itself, and parameters with their indices.
Parts = list[tuple[int, dict[str, Any], list[tuple[int, Tensor]]]]

SCALERS = ("grad_scale", "found_inf")  # what a GradScaler puts on an optimizer


def step_by_torch(
    optimizer: Optimizer,
    parts: Parts | Literal[True],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    clip: float | Tensor | None = None,
) -> None:
    """Runs torch's own step, with gradients unscaled first, where they are, as a GradScaler does.

    Args:
        optimizer: Nothing of it is replaced meanwhile that other threads or hooks may see, but what
            a GradScaler has put there, which torch's step doesn't expect.
        parts: The parameters, in parts of the optimizer's groups; or True: the optimizer as it is,
            since its step runs code of the user's.
        grad_scale: What a GradScaler has multiplied the loss by, if it leaves that to `step`.
        found_inf: One number; if it isn't 0, nothing is done.
        clip: What torch's step sees gradients multiplied by; they keep their values.

    Raises:
        RuntimeError: If torch has no such optimizer, a group has options of precision, or a
            gradient is sparse that torch's step doesn't take.
    """
    _refuse_precision(optimizer, parts)
    if found_inf is not None and float(found_inf):
        return
    cls = torch_class(type(optimizer))
    if cls is None:
        raise RuntimeError(_why_not(optimizer, parts))
    if parts is True:
        groups = optimizer.param_groups
        with _unscaled(groups, grad_scale), _clipped(groups, clip):
            _step_as_it_is(optimizer, cls)
    else:
        _refuse_sparse(optimizer, cls, parts)
        groups = [_part(optimizer, group, params) for _, group, params in parts]
        with _unscaled(groups, grad_scale), _clipped(groups, clip):
            _step(optimizer, cls, groups)


@contextmanager
def _unscaled(groups: Iterable[dict[str, Any]], grad_scale: Tensor | None) -> Iterator[None]:
    """Unscales the gradients of these groups' parameters; scaled again if an exception comes."""
    if grad_scale is None:
        yield
        return
    scale = float(grad_scale)
    with ExitStack() as undo:
        _multiply(_gradients(groups), 1.0 / scale if scale else math.inf, undo)
        yield
        undo.pop_all()


@contextmanager
def _clipped(groups: Iterable[dict[str, Any]], clip: float | Tensor | None) -> Iterator[None]:
    """Multiplies the gradients of these groups' parameters; afterwards they are as they were."""
    if clip is None:
        yield
        return
    with ExitStack() as undo:
        _multiply(_gradients(groups), clip, undo, restores=True)
        yield


def _gradients(groups: Iterable[dict[str, Any]]) -> list[tuple[Tensor, Tensor, bool]]:
    """Returns parameters, each once, their gradients, and whether the step is differentiable."""
    found = {
        id(p): (p, bool(group.get("differentiable"))) for group in groups for p in group["params"]
    }
    return [(p, p.grad, differs) for p, differs in found.values() if p.grad is not None]


def _multiply(
    grads: list[tuple[Tensor, Tensor, bool]],
    factor: float | Tensor,
    undo: ExitStack,
    restores: bool = False,
) -> None:
    """Multiplies gradients in place; `undo` gives them their values back.

    Elements that several gradients have are multiplied once. Expanded gradients can't be written:
    they are replaced by copies. So are, if they will get their values back (`restores`), those that
    a differentiable step reads, because autograd keeps them.
    """
    with torch.no_grad():
        before = [_values(grad).clone() for _, grad, _ in grads]
    for (param, grad, differentiable), unmultiplied in zip(grads, before, strict=True):
        value = _values(grad)
        if _is_expanded(value) or (restores and differentiable):
            with torch.set_grad_enabled(grad.requires_grad):
                copy = grad.clone()
            undo.callback(_replace_gradient, param, copy, grad)
            param.grad = copy
            value = _values(copy)
        else:
            undo.callback(_write, value, unmultiplied)
        with torch.no_grad():
            multiplied = unmultiplied.clone().mul_(factor)
        _write(value, multiplied)


def _values(grad: Tensor) -> Tensor:
    return grad._values() if grad.is_sparse else grad


def _is_expanded(value: Tensor) -> bool:
    return value.layout == torch.strided and any(
        stride == 0 and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True)
    )


def _replace_gradient(param: Tensor, gradient: Tensor, other: Tensor) -> None:
    if param.grad is gradient:
        param.grad = other


def _write(value: Tensor, numbers: Tensor) -> None:
    with _writable(value):
        value.copy_(numbers)


def _writable(value: Tensor) -> AbstractContextManager[Any]:
    """Where a gradient is written; an inference tensor is elsewhere, too, before torch raises."""
    return torch.inference_mode() if value.is_inference() else torch.no_grad()


class _Part(dict[str, Any]):
    """A group of which some entries are others; the rest is read when torch's step asks for it.

    By then a user's code that runs in that step, such as a factory of state, may have changed it.
    """

    def __init__(self, group: dict[str, Any], own: dict[str, Any]) -> None:
        super().__init__({**group, **own})
        self._group, self._own = group, own

    def __getitem__(self, key: str) -> Any:
        return self._own[key] if key in self._own else self._group[key]


def _part(
    optimizer: Optimizer, group: dict[str, Any], params: list[tuple[int, Tensor]]
) -> dict[str, Any]:
    """Returns a group like the optimizer's, with the parameters and options that torch's step gets.

    The list is another one, so that torch steps no parameter that joins meanwhile.
    """
    taken = [param for _, param in params]
    own: dict[str, Any] = {"params": taken}
    if group.get("fused") and not all(_fits_fused(optimizer, param) for param in taken):
        own["fused"] = None
    if group.get("nesterov") and group.get("foreach") is not False:
        own["foreach"] = False  # torch's foreach path overwrites the gradients
    return _Part(group, own)


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


def _why_not(optimizer: Any, parts: Parts | Literal[True]) -> str:
    """Says which parameter no kernel takes, of an optimizer that torch doesn't have."""
    first = (0, 0) if parts is True else (parts[0][0], parts[0][2][0][0])
    return (
        f"param_groups[{first[0]}]['params'][{first[1]}]: {type(optimizer).__name__} has kernels"
        f" only, and torch.optim no step in their place ({_reason(optimizer, first)})"
    )


def _refuse_precision(optimizer: Any, parts: Parts | Literal[True]) -> None:
    """Raises if torch's own step would ignore how a group's numbers are to be stored."""
    groups = optimizer.param_groups
    if parts is True:
        every = [] if isinstance(groups, Iterator) else [(i, 0, g) for i, g in enumerate(groups)]
    else:
        every = [(index, params[0][0], group) for index, group, params in parts]
    for index, first, group in every:
        named = describe(group) if isinstance(group, Mapping) else ""
        if named and _has_params(group):
            raise RuntimeError(
                f"param_groups[{index}]['params'][{first}]: {named}, which torch's own step has"
                f" not, and no kernel takes it ({_reason(optimizer, (index, first))})"
            )


def _refuse_sparse(optimizer: Optimizer, cls: type[Optimizer], parts: Parts) -> None:
    """Raises where torch's own step would, but before that has stepped other groups."""
    takes = cls in (torch.optim.SGD, torch.optim.Adagrad)
    for index, group, params in parts:
        if takes and not group["weight_decay"]:
            continue
        for place, param in params:
            if param.grad is not None and param.grad.is_sparse:
                why = "weight_decay option is not compatible with sparse gradients"
                if not takes:
                    why = f"{type(optimizer).__name__} does not support sparse gradients"
                raise RuntimeError(f"param_groups[{index}]['params'][{place}]: {why}")


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
