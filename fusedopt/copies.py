"""Copies of all that an optimizer steps: parameters, gradients, state and options."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from fusedopt.memory import free_memory


class Refused(Exception):
    """An optimizer can't be copied, or a copy can't be stepped; the message says why."""


@dataclass
class Copies:
    """What an optimizer steps, in memory of its own.

    Attributes:
        pairs: The parameters that have a gradient, each with its copy.
        groups: Like the optimizer's, with copies; for a parameter without a gradient there is one
            without elements.
        state: Of the copies.
        size: The bytes of parameters and state.
    """

    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    state: dict[Tensor, dict[str, Any]] = field(default_factory=dict)
    size: int = 0

    def set_gradients(self) -> None:
        """Gives each copy a new gradient, as a backward pass does: a copy of the parameter's."""
        fresh: dict[int, Tensor] = {}
        for param, twin in self.pairs:
            grad = param.grad
            if grad is not None and id(grad) not in fresh:
                fresh[id(grad)] = _copy_gradient(grad)
            _set_gradient(twin, None if grad is None else fresh[id(grad)])

    def drop_gradients(self) -> None:
        """Takes them away."""
        for _, twin in self.pairs:
            twin.grad = None


def copies_of(optimizer: Optimizer, keys: Iterable[str]) -> Copies:
    """Copies what an optimizer steps, as it lies in memory, and runs no code of a user's.

    Args:
        optimizer: Stays as it is.
        keys: The state's.

    Raises:
        Refused: If something can't be copied, or there is no memory for it.
    """
    states: dict[Tensor, dict[str, Any]] = {}
    for i, group in enumerate(optimizer.param_groups):
        refuse_group(group)
        for k, param in enumerate(group["params"]):
            if param.grad is not None:
                state = optimizer.state.get(param, {})
                state = {key: state[key] for key in keys if key in state}
                _refuse_unlike(f"param_groups[{i}]['params'][{k}]", param, state)
                states[param] = state
    if not states:
        raise Refused("none of its parameters has a gradient")
    values = [value for state in states.values() for value in state.values()]
    copies = Copies(size=_bytes_of([*states, *values]))
    if all(param.device.type == "cpu" for param in states):  # others have allocators that refuse
        grads = _bytes_of([param.grad for param in states])
        _refuse_size(copies.size + 2 * grads)  # torch's step has temporaries
    memo: dict[int, Any] = {}
    twins = {param: _copy_parameter(param, memo) for param in states}
    copies.pairs = list(twins.items())
    for param, state in states.items():
        copies.state[twins[param]] = {key: _copy(value, memo) for key, value in state.items()}
    for group in optimizer.param_groups:
        params = [twins[p] if p in twins else _placeholder(p) for p in group["params"]]
        copies.groups.append({**group, "params": params})
    return copies


def refuse_group(group: Mapping[str, Any]) -> None:
    """Raises if a group's parameters can't be gone through twice, or need a graph."""
    if isinstance(group["params"], Iterator):
        raise Refused("parameters in an iterator can't be copied and stepped")
    if group.get("differentiable"):
        raise Refused("differentiable=True is torch's own step in both")


def _refuse_unlike(name: str, param: Tensor, state: Mapping[str, Any]) -> None:
    """Raises if stepping a copy would run a user's code, or make ranks wait for each other."""
    named = {name: param, f"{name}.grad": param.grad}
    named |= {f"the state of {name}": value for value in state.values()}
    for what, tensor in named.items():
        if not isinstance(tensor, Tensor) or type(tensor) in (Tensor, Parameter):
            continue
        if not is_dtensor(tensor):
            raise Refused(f"{what} is a {type(tensor).__name__}, which isn't copied")
        if tensor.dim() and getattr(tensor, "placements", None) != getattr(
            param, "placements", None
        ):
            raise Refused(f"{what} is placed otherwise than its parameter: ranks would exchange it")


def _refuse_size(needed: int) -> None:
    free = free_memory()
    if free is not None and needed > 0.9 * free:
        raise Refused(f"copies take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")


def is_dtensor(tensor: Tensor) -> bool:
    """Whether it is a piece of a tensor, of which other processes have others."""
    if not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return type(tensor) is DTensor


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    """Copies a tensor with its storage, which copies share where the originals do."""
    if not isinstance(value, Tensor):
        return value
    if is_dtensor(value):
        return value.detach().clone()
    return copy.deepcopy(value.detach(), memo)


def _copy_parameter(param: Tensor, memo: dict[int, Any]) -> Tensor:
    twin: Tensor = _copy(param, memo)
    if isinstance(param, Parameter):
        return Parameter(twin, requires_grad=param.requires_grad)
    twin.requires_grad_(param.requires_grad)
    return twin


def _copy_gradient(grad: Tensor) -> Tensor:
    twin = grad.detach().clone()
    if grad.layout == torch.strided and twin.stride() != grad.stride():  # sliced, or expanded
        return copy.deepcopy(grad.detach())
    return twin


def _set_gradient(param: Tensor, grad: Tensor | None) -> None:
    if grad is not None and grad.dtype != param.dtype and hasattr(param, "grad_dtype"):
        param.grad_dtype = None  # any
    param.grad = grad


def _placeholder(param: Tensor) -> Tensor:
    """Stands for a parameter that a step passes over."""
    return Parameter(torch.empty(0, dtype=param.dtype, device=param.device), requires_grad=False)


def _bytes_of(tensors: Iterable[Any]) -> int:
    """Returns the bytes of the tensors' storages, each counted once."""
    storages: dict[int, int] = {}
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            continue
        for part in _parts(tensor):
            storage = part.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


def _parts(tensor: Tensor) -> list[Tensor]:
    """Returns the tensors that have its memory."""
    if is_dtensor(tensor):
        tensor = tensor.to_local()  # type: ignore[attr-defined]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    return [tensor] if tensor.layout == torch.strided else []
