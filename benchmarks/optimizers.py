"""The optimizers that the benchmarks compare, each with one set of options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from fusedopt import _C


@dataclass(frozen=True, eq=False)
class Choice:
    """One class of torch.optim with options.

    Attributes:
        name: What `--optimizer` takes and the tables print.
        cls: The class' name in torch.optim and in fusedopt.
        options: Keyword arguments.
        states: How many tensors of a parameter's size its state has.
        visible_lr: A learning rate at which a step moves parameters by 1 or more, so that also
            bfloat16 shows whether they moved rightly.
    """

    name: str
    cls: str
    options: Mapping[str, Any] = field(default_factory=dict)
    states: int = 1
    visible_lr: float = 1.0

    def bytes_moved(self, elements: int, element_size: int) -> int:
        """What a step must read (parameter, gradient, state) and write (parameter, state)."""
        return elements * element_size * (3 + 2 * self.states)


_CHOSEN = (
    Choice("sgd", "SGD", {"lr": 1e-3}, states=0),
    Choice("sgd-momentum", "SGD", {"lr": 1e-3, "momentum": 0.9}),
    Choice("adagrad", "Adagrad"),
    Choice("rmsprop", "RMSprop", {"lr": 1e-3}),
    Choice(
        "rmsprop-both", "RMSprop", {"lr": 1e-3, "momentum": 0.9, "centered": True}, states=3,
        visible_lr=0.1,
    ),
    Choice("adadelta", "Adadelta", states=2, visible_lr=300.0),
    Choice("adam", "Adam", states=2),
    Choice("adamw", "AdamW", states=2),
    Choice("adamw-amsgrad", "AdamW", {"amsgrad": True}, states=3),
)  # fmt: skip
# The others, as far as torch has them to compare with, as they are by default.
_OTHERS = (
    Choice(cls.lower(), cls, states=len(described["states"]))
    for cls, described in _C.optimizers().items()
    if hasattr(torch.optim, cls) and cls not in {choice.cls for choice in _CHOSEN}
)
OPTIMIZERS = {choice.name: choice for choice in (*_CHOSEN, *_OTHERS)}


def parameter_sized_states(optimizer: Optimizer) -> int:
    """How many tensors of the first parameter's shape an optimizer keeps for it."""
    first = optimizer.param_groups[0]["params"][0]
    state = optimizer.state.get(first, {})
    return sum(getattr(value, "shape", None) == first.shape for value in state.values())
