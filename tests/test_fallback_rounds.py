"""What changes while torch's own step runs: who is for torch, and what the groups hold.

A factory of missing state is code that runs there; so do finalisers and other threads.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import random
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt


class Doubled(Tensor):
    """A gradient of a user's class, whose operators only torch's step calls."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


def sparse(optimizer: Optimizer, params: list[Parameter]) -> None:
    params[1].grad = params[1].grad.to_sparse()  # type: ignore[union-attr]


def shared(optimizer: Optimizer, params: list[Parameter]) -> None:
    params[2].data = params[1].data


def of_users_class(optimizer: Optimizer, params: list[Parameter]) -> None:
    params[2].grad = params[2].grad.as_subclass(Doubled)  # type: ignore[union-attr]


def all_in_turn(optimizer: Optimizer, params: list[Parameter]) -> None:
    """The second parameter's state is asked for in the second round."""
    sparse(optimizer, params)
    missing = optimizer.state.default_factory  # type: ignore[attr-defined]

    def factory() -> dict[str, Any]:
        of_users_class(optimizer, params)
        optimizer.state.default_factory = missing  # type: ignore[attr-defined]
        return {}

    optimizer.state.default_factory = factory  # type: ignore[attr-defined]


def without_the_first(optimizer: Optimizer, params: list[Parameter]) -> None:
    """The others have moved up in the list when the kernels come."""
    optimizer.param_groups[0]["params"] = params[1:]


def the_other_way_round(optimizer: Optimizer, params: list[Parameter]) -> None:
    optimizer.param_groups[0]["params"] = params[::-1]


def joined_by_one(optimizer: Optimizer, params: list[Parameter]) -> None:
    """In the list that torch's step goes through."""
    params.append(Parameter(random((3,), 5)))
    params[-1].grad = random((3,), 11)
    optimizer.param_groups[0]["params"].append(params[-1])


def groups_exchanged(optimizer: Optimizer, params: list[Parameter]) -> None:
    optimizer.param_groups = optimizer.param_groups[::-1]


def at_another_rate(optimizer: Optimizer, params: list[Parameter]) -> None:
    """That torch's SGD reads after it has asked for the state."""
    optimizer.param_groups[0]["lr"] = 0.5


def stepped(
    module: ModuleType, act: Callable[[Optimizer, list[Parameter]], None], first: int = 4
) -> tuple[Optimizer, list[Parameter]]:
    """An optimizer whose first parameter torch steps, and what acts when torch asks for state.

    The first group has as many parameters as `first` says, and the second one the others.
    """
    complex_one = torch.complex(random((3,), 0), random((3,), 1))
    params = [Parameter(complex_one), *(Parameter(random((3,), i)) for i in (2, 3, 4))]
    groups = [{"params": params[:first]}, {"params": params[first:]}]
    optimizer = module.SGD(groups, lr=0.1, momentum=0.9)
    acted = False

    def factory() -> dict[str, Any]:
        nonlocal acted
        if not acted:
            acted = True
            act(optimizer, params)
        return {}

    optimizer.state = collections.defaultdict(factory)
    for i, p in enumerate(params):
        p.grad = random(p.shape, 7 + i).to(p.dtype)
    optimizer.step()
    return optimizer, params


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(
    ("act", "first"),
    [
        (sparse, 4),
        (shared, 4),
        (of_users_class, 4),
        (all_in_turn, 4),
        (without_the_first, 4),
        (the_other_way_round, 4),
        (joined_by_one, 1),
        (groups_exchanged, 2),
        (at_another_rate, 4),
    ],
)
def test_each_parameter_is_stepped_once(
    act: Callable[[Optimizer, list[Parameter]], None], first: int
) -> None:
    _, ours = stepped(fusedopt, act, first)
    _, theirs = stepped(torch.optim, act, first)
    for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(p.detach(), q.detach(), msg=lambda m, i=i: f"{i}: {m}")


def test_groups_that_only_torch_can_read() -> None:
    """Then nobody knows which parameters are left."""

    def act(optimizer: Optimizer, params: list[Parameter]) -> None:
        optimizer.param_groups[0]["params"] = collections.deque(params)

    with pytest.raises(RuntimeError, match="changed while torch's own step ran: its group's"):
        stepped(fusedopt, act)
