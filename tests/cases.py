"""The table of cases: every optimizer with each of its options, the dtypes, the memory layouts."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from partners import partner
from reference import DISCONTINUOUS, update
from torch import Tensor
from torch.optim import Optimizer

import fusedopt

OPTIMIZERS = fusedopt._C.optimizers()
NAMES = tuple(OPTIMIZERS)
# The keys of single numbers in a parameter's state; the others have its size.
SCALARS = frozenset(key for each in OPTIMIZERS.values() for key in each["scalars"])
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """One optimizer with one set of options."""

    name: str
    label: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """What pytest prints."""
        return f"{self.name}-{self.label}"

    @property
    def has_fallback(self) -> bool:
        """Whether torch.optim has such an optimizer, which steps what the kernels don't cover."""
        return hasattr(torch.optim, self.name)

    @property
    def options(self) -> tuple[str, ...]:
        """The keys of a group that its rule reads."""
        return OPTIMIZERS[self.name]["options"]

    @property
    def counts_steps(self) -> bool:
        """Whether there is a state["step"]."""
        return OPTIMIZERS[self.name]["counts_steps"]

    @property
    def computes_with_step(self) -> bool:
        """Whether a step depends on how many there were."""
        return OPTIMIZERS[self.name]["computes_with_step"]

    @cached_property
    def keeps_state(self) -> bool:
        """Whether the formula, with these options, keeps anything from step to step."""
        group = self.make([torch.zeros(1, requires_grad=True)]).param_groups[0]
        _, state = update(self.name, np.zeros(1), np.zeros(1), {}, group)
        return bool(state)

    @property
    def makes_state_early(self) -> bool:
        """Whether the constructor makes it, as Adagrad's, and not the first step."""
        return bool(OPTIMIZERS[self.name]["filled_early"])

    @property
    def continuous(self) -> bool:
        """Whether nearly the same gradients always make nearly the same step."""
        return self.name not in DISCONTINUOUS

    @property
    def filled_from(self) -> Mapping[str, str]:
        """Which option of the group each fresh state is filled with, that isn't 0."""
        return OPTIMIZERS[self.name]["filled_from"]

    def make(
        self, params: Iterable[Any], module: ModuleType = fusedopt, **overrides: Any
    ) -> Optimizer:
        """Makes the optimizer from `module`; tensor options are copied, so runs share nothing."""
        kwargs = {**copy.deepcopy(dict(self.kwargs)), **overrides}
        return class_of(module, self.name)(params, **kwargs)


def class_of(module: ModuleType, name: str) -> Callable[..., Optimizer]:
    """The class of that name; in torch.optim's place, where it has none, one of our own."""
    return partner(name) if module is torch.optim else getattr(module, name)


def _tensor(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


_ADAM: dict[str, dict[str, Any]] = {
    "default": {},
    "lr": {"lr": 0.05},
    "betas": {"betas": (0.6, 0.95)},
    "no_first_moment": {"betas": (0.0, 0.9)},
    "no_second_moment": {"betas": (0.9, 0.0)},
    "eps": {"eps": 0.1},
    "no_eps": {"eps": 0.0},
    "no_weight_decay": {"weight_decay": 0.0},
    "weight_decay": {"weight_decay": 0.2},
    "amsgrad": {"amsgrad": True, "betas": (0.9, 0.7)},
    "maximize": {"maximize": True},
    "all": {
        "lr": 0.03, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1, "amsgrad": True,
        "maximize": True,
    },
    "tensor_lr": {"lr": _tensor(0.02)},
    "tensor_betas": {"lr": _tensor(0.02), "betas": (_tensor(0.8), _tensor(0.95))},
}  # fmt: skip

_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "SGD": {
        "default": {},
        "zero_lr": {"lr": 0.0},
        "weight_decay": {"lr": 0.1, "weight_decay": 0.2},
        "maximize": {"lr": 0.1, "maximize": True},
        "unused_dampening": {"lr": 0.1, "dampening": 0.5},
        "momentum": {"lr": 0.1, "momentum": 0.9},
        "dampening": {"lr": 0.1, "momentum": 0.9, "dampening": 0.3},
        "nesterov": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
        "momentum_weight_decay": {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.1},
        "momentum_maximize": {"lr": 0.1, "momentum": 0.8, "dampening": 0.2, "maximize": True},
        "all": {
            "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True,
        },
        "tensor_lr": {"lr": _tensor(0.1), "momentum": 0.9},
    },
    "Adagrad": {
        "default": {},
        "lr_decay": {"lr": 0.1, "lr_decay": 0.3},
        "weight_decay": {"lr": 0.1, "weight_decay": 0.2},
        "initial": {"lr": 0.1, "initial_accumulator_value": 0.5},
        "eps": {"lr": 0.1, "eps": 0.1},
        "maximize": {"lr": 0.1, "maximize": True},
        "all": {
            "lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.25,
            "eps": 1e-3, "maximize": True,
        },
        "tensor_lr": {"lr": _tensor(0.1), "lr_decay": 0.1},
    },
    "RMSprop": {
        "default": {},
        "alpha": {"alpha": 0.7},
        "eps": {"eps": 0.1},
        "weight_decay": {"weight_decay": 0.2},
        "maximize": {"maximize": True},
        "momentum": {"momentum": 0.9},
        "centered": {"centered": True},
        "momentum_centered": {"momentum": 0.8, "centered": True, "alpha": 0.8},
        "all": {
            "lr": 0.02, "alpha": 0.8, "eps": 1e-3, "momentum": 0.7, "centered": True,
            "weight_decay": 0.1, "maximize": True,
        },
        "tensor_lr": {"lr": _tensor(0.02)},
    },
    "Adadelta": {
        "default": {},
        "lr": {"lr": 0.5},
        "rho": {"rho": 0.6},
        "eps": {"eps": 0.1},
        "weight_decay": {"weight_decay": 0.2},
        "maximize": {"maximize": True},
        "all": {"lr": 0.7, "rho": 0.8, "eps": 1e-2, "weight_decay": 0.1, "maximize": True},
        "tensor_lr": {"lr": _tensor(0.5)},
    },
    "Adam": {**_ADAM, "decoupled": {"weight_decay": 0.2, "decoupled_weight_decay": True}},
    "AdamW": _ADAM,
    "Adamax": {
        "default": {},
        "lr": {"lr": 0.05},
        "betas": {"betas": (0.6, 0.8)},
        "no_first_moment": {"betas": (0.0, 0.9)},
        "no_second_moment": {"betas": (0.9, 0.0)},
        "eps": {"eps": 0.1},
        "weight_decay": {"weight_decay": 0.2},
        "maximize": {"maximize": True},
        "all": {
            "lr": 0.03, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1, "maximize": True,
        },
        "tensor_lr": {"lr": _tensor(0.02)},
    },
    "NAdam": {
        "default": {},
        "lr": {"lr": 0.05},
        "betas": {"betas": (0.6, 0.95)},
        "no_first_moment": {"betas": (0.0, 0.9)},
        "no_second_moment": {"betas": (0.9, 0.0)},
        "eps": {"eps": 0.1},
        "momentum_decay": {"momentum_decay": 0.7},
        "weight_decay": {"weight_decay": 0.2},
        "decoupled": {"weight_decay": 0.2, "decoupled_weight_decay": True},
        "maximize": {"maximize": True},
        "all": {
            "lr": 0.03, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1,
            "momentum_decay": 0.03, "maximize": True,
        },
        "tensor_lr": {"lr": _tensor(0.02)},
    },
    "ASGD": {
        "default": {},
        "lr": {"lr": 0.1},
        "lambd": {"lr": 0.1, "lambd": 0.5},
        "alpha": {"lr": 0.1, "lambd": 0.5, "alpha": 0.3},
        "averages": {"lr": 0.1, "t0": 2.0},
        "weight_decay": {"lr": 0.1, "weight_decay": 0.2},
        "maximize": {"maximize": True},
        "all": {
            "lr": 0.05, "lambd": 0.2, "alpha": 0.6, "t0": 1.5, "weight_decay": 0.1,
            "maximize": True,
        },
        "tensor_lr": {"lr": _tensor(0.1), "lambd": 0.2},
    },
    "Lion": {
        "default": {},
        "lr": {"lr": 0.05},
        "betas": {"betas": (0.6, 0.8)},
        "no_momentum": {"betas": (0.9, 0.0)},
        "weight_decay": {"weight_decay": 0.2},
        "maximize": {"maximize": True},
        "all": {"lr": 0.03, "betas": (0.8, 0.9), "weight_decay": 0.1, "maximize": True},
        "tensor_lr": {"lr": _tensor(0.02)},
    },
    "Rprop": {
        "default": {},
        "lr": {"lr": 0.05},
        "etas": {"etas": (0.3, 1.5)},
        "step_sizes": {"lr": 0.05, "step_sizes": (0.02, 0.06)},
        "maximize": {"maximize": True},
        "all": {
            "lr": 0.03, "etas": (0.4, 1.3), "step_sizes": (0.01, 0.05), "maximize": True,
        },
        "tensor_lr": {"lr": _tensor(0.02)},
    },
    "RAdam": {
        "default": {},
        "lr": {"lr": 0.05},
        "betas": {"betas": (0.6, 0.95)},
        "never_divides": {"betas": (0.9, 0.5)},
        "no_first_moment": {"betas": (0.0, 0.9)},
        "eps": {"eps": 0.1},
        "weight_decay": {"weight_decay": 0.2},
        "decoupled": {"weight_decay": 0.2, "decoupled_weight_decay": True},
        "maximize": {"maximize": True},
        "all": {
            "lr": 0.03, "betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.1, "maximize": True,
        },
        "tensor_lr": {"lr": _tensor(0.02)},
    },
}  # fmt: skip

CASES = tuple(Case(n, label, kw) for n in NAMES for label, kw in _OPTIONS[n].items())
_BY_ID = {case.id: case for case in CASES}
# One case per class, with as many options on as go together.
CLASS_CASES = tuple(_BY_ID[f"{name}-all"] for name in NAMES)
# And more for each set of states a kernel can have.
MAIN_CASES = CLASS_CASES + tuple(
    _BY_ID[i]
    for i in (
        "SGD-weight_decay", "SGD-dampening", "RMSprop-weight_decay", "RMSprop-momentum",
        "RMSprop-centered", "Adam-weight_decay", "AdamW-default",
    )
)  # fmt: skip


def case(case_id: str) -> Case:
    """The case of that id, as in `case("Adam-amsgrad")`."""
    return _BY_ID[case_id]


def with_torch(cases: Iterable[Case]) -> list[Case]:
    """Those of the optimizers that torch has too, so that its step runs where no kernel can."""
    return [case for case in cases if case.has_fallback]


def takes(module: ModuleType, name: str, option: str) -> bool:
    """Whether a constructor has that option (torch's RMSprop has no `fused`, and no Lion)."""
    cls = getattr(module, name, None)
    return cls is not None and option in inspect.signature(cls).parameters


@dataclass(frozen=True)
class Layout:
    """A way to lay a parameter and its gradient out in memory."""

    id: str
    shape: tuple[int, ...]
    param: Callable[[Tensor], Tensor]
    grad: Callable[[Tensor], Tensor]


def dense(values: Tensor) -> Tensor:
    """Contiguous, in memory of its own."""
    return values.clone(memory_format=torch.contiguous_format)


def transposed(values: Tensor) -> Tensor:
    """Dense, with the dimensions in reverse order in memory."""
    out = torch.empty(values.shape[::-1], dtype=values.dtype).permute(
        *reversed(range(values.dim()))
    )
    return out.copy_(values)


def sliced(values: Tensor) -> Tensor:
    """Every second element of some columns of a larger matrix."""
    rows, columns = values.shape
    around = torch.full((rows + 1, 2 * columns + 3), 7.0, dtype=values.dtype)
    return around[1:, 2 : 2 * columns + 2 : 2].copy_(values)


def gapped(values: Tensor) -> Tensor:
    """The first columns of a wider tensor."""
    around = torch.full((*values.shape[:-1], values.shape[-1] + 1), 7.0, dtype=values.dtype)
    return around[..., :-1].copy_(values)


def shuffled(values: Tensor) -> Tensor:
    """Dense, with the dimensions in another order in memory."""
    order = [5 * dim % values.dim() for dim in range(values.dim())]
    out = values.permute(order).clone(memory_format=torch.contiguous_format)
    return out.permute([order.index(dim) for dim in range(values.dim())])


def offset(values: Tensor) -> Tensor:
    """Contiguous, one element after the start of its memory, and one before its end."""
    around = torch.full((values.numel() + 2,), 7.0, dtype=values.dtype)
    return around[1:-1].view(values.shape).copy_(values)


def misaligned(values: Tensor) -> Tensor:
    """Contiguous, at an address that is no multiple of the element's size."""
    buffer = bytearray(values.numel() * values.element_size() + 64)
    for start in range(1, 64):
        out = torch.frombuffer(buffer, dtype=values.dtype, count=values.numel(), offset=start)
        if out.data_ptr() % values.element_size() == 1:
            return out.view(values.shape).copy_(values)
    raise AssertionError("no such address in 64 bytes")


def channels_last(values: Tensor) -> Tensor:
    """NHWC."""
    return values.clone(memory_format=torch.channels_last)


def expanded(values: Tensor) -> Tensor:
    """One row for all (its values are those of the first row)."""
    return dense(values[:1]).expand(values.shape)


def one_for_all(values: Tensor) -> Tensor:
    """One element for all, as `loss = p.sum()` gives."""
    return dense(values.flatten()[:1]).view([1] * values.dim()).expand(values.shape)


_MATRIX = (33, 37)
LAYOUTS = (
    Layout("contiguous", _MATRIX, dense, dense),
    Layout("channels_last", (5, 6, 7, 9), channels_last, channels_last),
    Layout("transposed", _MATRIX, transposed, transposed),
    Layout("permuted", (5, 3, 7, 11), transposed, transposed),
    Layout("sliced", _MATRIX, sliced, sliced),
    Layout("offset", _MATRIX, offset, offset),
    Layout("misaligned", _MATRIX, misaligned, misaligned),
    Layout("expanded_grad", _MATRIX, dense, expanded),
    Layout("one_for_all_grad", _MATRIX, dense, one_for_all),
    Layout("transposed_grad", _MATRIX, dense, transposed),
    Layout("transposed_param", _MATRIX, transposed, dense),
    Layout("channels_last_param", (5, 6, 7, 9), channels_last, dense),
    Layout("sliced_param", _MATRIX, sliced, dense),
    Layout("sliced_grad", _MATRIX, transposed, sliced),
    Layout("short_rows_param", (601, 2), gapped, dense),
    Layout("short_rows", (23, 31, 3), gapped, transposed),
    Layout("short_dimensions", (2,) * 11, gapped, shuffled),
    Layout("0-dim", (), dense, dense),
    Layout("one_element", (1, 1, 1), dense, dense),
    Layout("empty", (0, 3), dense, dense),
)


def over(values: Iterable[Any], name: str) -> pytest.MarkDecorator:
    """Parametrizes a test over cases, layouts or dtypes, with readable ids."""
    items = list(values)
    ids = [getattr(v, "id", None) or str(v).removeprefix("torch.") for v in items]
    return pytest.mark.parametrize(name, items, ids=ids)
