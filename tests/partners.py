"""What an optimizer is compared with: torch.optim's class, or one that steps by the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from reference import from_array, to_array, update
from torch import Tensor
from torch.optim import Optimizer

import fusedopt
from fusedopt.precision import PRECISION


@cache
def partner(name: str) -> Callable[..., Optimizer]:
    """torch.optim's class of that name; where it has none, the float64 reference is the judge."""
    return getattr(torch.optim, name, None) or by_reference(name)


def by_reference(name: str) -> Callable[..., Optimizer]:
    """A class that is constructed as fusedopt's of that name, and steps by the reference."""
    described = fusedopt._C.optimizers()[name]
    return type(name, (_ByReference,), {"name": name, "described": described})


class _ByReference(Optimizer):
    """Rounds parameters and state after each step, and raises RuntimeError where torch would.

    What fresh state holds, and which states there are, the formula says and not the table of
    optimizers, which is tested against it.
    """

    name: str
    described: Mapping[str, Any]  # the line of the table of optimizers

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        ours = getattr(fusedopt, self.name)(params, *args, **kwargs)
        groups = [_without_precision(group) for group in ours.param_groups]
        super().__init__(groups, _without_precision(ours.defaults))
        for group in self.param_groups if self.described["filled_early"] else ():
            for param in group["params"]:
                state = self.state[param]
                state.update({key: torch.zeros(()) for key in self.described["scalars"]})
                for key, option in self.described["filled_early"].items():
                    state[key] = torch.full_like(param, self.defaults[option])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, param.grad, group)
        return loss

    def _update(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, scalars = self.state[param], self.described["scalars"]
        keys = (*scalars, *self.described["states"])
        for key in self.described["states"]:
            if key in state and not _alike(state[key], param):
                raise RuntimeError(f"state[{key!r}] doesn't fit its parameter")
        before = {key: to_array(state[key].real) for key in keys if key in state}
        values, after = update(self.name, to_array(param), to_array(grad), before, group)
        for key in (key for key in keys if key in after):
            if key in scalars[:1] and key in state:
                state[key] += 1  # with the rounding of its dtype, or the error
                continue
            if key not in state or key in self.described["anew"]:
                state[key] = torch.zeros(()) if key in scalars else torch.zeros_like(param)
            state[key].copy_(from_array(after[key], state[key].dtype))
        if not state:
            del self.state[param]
        param.copy_(from_array(values, param.dtype))


def _without_precision(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in PRECISION}


def _alike(state: Tensor, param: Tensor) -> bool:
    def kind(tensor: Tensor) -> tuple[Any, ...]:
        return tensor.shape, tensor.layout, tensor.device, tensor.is_complex()

    return kind(state) == kind(param)
