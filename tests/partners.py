"""What an optimizer is compared with: torch.optim's class, or one that steps by the reference."""

from __future__ import annotations

import inspect
from collections.abc import Callable
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
    return getattr(torch.optim, name, None) or type(name, (_ByReference,), {"name": name})


class _ByReference(Optimizer):
    """Constructed as fusedopt's class, with parameters and state rounded after each step."""

    name: str

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(getattr(fusedopt, self.name)).bind(params, *args, **kwargs)
        bound.apply_defaults()
        defaults = {k: v for k, v in bound.arguments.items() if k not in PRECISION}
        super().__init__(defaults.pop("params"), defaults)

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
        state = self.state[param]
        described = fusedopt._C.optimizers()[self.name]
        for key in described["scalars"]:
            state.setdefault(key, torch.zeros(()))
        for key in described["states"]:
            state.setdefault(key, torch.zeros_like(param))
        before = {key: to_array(value) for key, value in state.items()}
        values, after = update(self.name, to_array(param), to_array(grad), before, group)
        for key, value in after.items():
            state[key].copy_(from_array(value, state[key].dtype))
        param.copy_(from_array(values, param.dtype))
