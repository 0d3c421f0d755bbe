"""Tensors that share memory with another parameter's, state's or gradient's: torch's results.

torch steps parameter after parameter, and sees what it has written before. Such parameters are
torch's, in whatever way the memory is shared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CLASS_CASES, Case, over
from helpers import Make, kernels, make_params, random, set_grads, step, twins
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt

STATEFUL = [c for c in CLASS_CASES if c.id != "SGD-default"]


def first_state(optimizer: Optimizer, param: Tensor) -> Tensor:
    """A state of the parameter's size."""
    return next(v for k, v in optimizer.state[param].items() if k != "step")


def numpys(tensor: Tensor) -> Tensor:
    """The same memory in another storage, as NumPy hands it on."""
    return torch.from_numpy(tensor.detach().numpy())


Share = Callable[[Optimizer, Parameter, Parameter], Tensor]
# Each returns what becomes the second parameter's gradient.
SHARED: dict[str, Share] = {
    "parameter": lambda o, a, b: a.detach(),
    "the parameter itself": lambda o, a, b: a,
    "view of a parameter": lambda o, a, b: a.detach()[2].expand(6),
    "parameter by numpy": lambda o, a, b: numpys(a),
    "state": lambda o, a, b: first_state(o, a),
    "state by numpy": lambda o, a, b: numpys(first_state(o, a)),
    "own state": lambda o, a, b: first_state(o, b),
    "own parameter": lambda o, a, b: b.detach(),
    "own parameter by numpy": lambda o, a, b: numpys(b),
}


@pytest.mark.parametrize("how", SHARED)
@pytest.mark.parametrize("order", ["first to last", "last to first"])
@over(STATEFUL, "case")
def test_a_gradient_in_memory_that_the_step_writes(case: Case, order: str, how: str) -> None:
    def scenario(make: Make) -> Optimizer:
        first, second, third = make_params([(6,), (6,), (4,)])
        params = [first, second, third]
        optimizer = make(params if order == "first to last" else params[::-1])
        for t in range(3):
            step(optimizer, t)
        second.grad = SHARED[how](optimizer, first, second)
        for _ in range(2):
            optimizer.step()
        if fusedopt.__name__ in type(optimizer).__module__:
            reasons = {row.reason for row in fusedopt.explain(optimizer).rows}
            assert any("shares memory" in reason for reason in reasons)
            assert "" in reasons  # the third has nothing to do with it
        for p in params:
            p.grad = None
        return optimizer

    twins(case, scenario)


@over(STATEFUL, "case")
def test_memory_that_came_from_numpy(case: Case) -> None:
    """Whose owner torch doesn't know: shared or not, the result is torch's."""

    def scenario(make: Make) -> Optimizer:
        grad = random((6,), 5)
        params = [Parameter(numpys(grad)), *make_params([(6,), (3,)])]
        optimizer = make(params)
        step(optimizer, 0)
        step(optimizer, 1)
        params[1].grad = grad
        optimizer.step()
        optimizer.step()
        params[1].grad = None
        return optimizer

    twins(case, scenario)


def test_parameters_from_numpy_keep_the_kernels() -> None:
    params = [Parameter(numpys(random((6,), i))) for i in range(3)]
    set_grads(params, 0)
    assert kernels(fusedopt.Adam(params)) == {"adam"}


@over(STATEFUL, "case")
def test_what_torch_steps_is_seen_too(case: Case) -> None:
    """A complex parameter is torch's, and so is whose gradient is a view of it."""

    def scenario(make: Make) -> Optimizer:
        whole = Parameter(torch.complex(random((3,), 0), random((3,), 1)))
        part, other = make_params([(3, 2), (4,)])
        optimizer = make([part, whole, other])
        for t in range(2):
            set_grads([part, other], t)
            whole.grad = torch.complex(random((3,), t), random((3,), t + 5))
            optimizer.step()
        part.grad = torch.view_as_real(whole.detach())
        optimizer.step()
        for p in (part, whole, other):
            p.grad = None
        return optimizer

    twins(case, scenario)


@over([c for c in STATEFUL if c.name != "SGD"], "case")
@pytest.mark.parametrize("how", ["one count for two", "a parameter's element"])
def test_step_counts_in_shared_memory(case: Case, how: str) -> None:
    def scenario(make: Make) -> Optimizer:
        first, second = make_params([(4,), (5,)])
        optimizer = make([first, second], foreach=False)
        step(optimizer, 0)
        shared: Any = optimizer.state[first]["step"]
        if how == "a parameter's element":
            with torch.no_grad():
                first[0] = 3.0
            shared = first.detach()[0]
        optimizer.state[second]["step"] = shared
        for t in range(3):
            step(optimizer, t)
        return optimizer

    twins(case, scenario)


@over(CLASS_CASES, "case")
def test_gradients_may_share_memory_with_gradients(case: Case) -> None:
    """They are only read: buckets of gradients, and one gradient for all, keep the kernels."""

    def scenario(make: Make) -> Optimizer:
        params = make_params([(4,), (4,), (3,)])
        optimizer = make(params)
        for t in range(3):
            bucket = random((11,), t)
            params[0].grad, params[2].grad = bucket[:4], bucket[8:]
            params[1].grad = params[0].grad
            if fusedopt.__name__ in type(optimizer).__module__:
                assert kernels(optimizer) == {case.name.lower()}
            optimizer.step()
        for p in params:
            p.grad = None
        return optimizer

    twins(case, scenario)
