"""Tensors that share memory with another parameter's, state's or gradient's: torch's results.

torch steps parameter after parameter, and sees what it has written before. Such parameters are
torch's, in whatever way the memory is shared.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from cases import CLASS_CASES, SCALARS, Case, over
from helpers import Make, kernels, left_to_torch, make_params, random, set_grads, step, twins
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt

STATEFUL = [c for c in CLASS_CASES if c.keeps_state]


def first_state(optimizer: Optimizer, param: Tensor) -> Tensor:
    """A state of the parameter's size."""
    return next(v for k, v in optimizer.state[param].items() if k not in SCALARS)


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

    left_to_torch(case, scenario, "shares memory with")


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

    left_to_torch(case, scenario, "shares memory with")


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

    left_to_torch(case, scenario, "complex")


@over([c for c in STATEFUL if c.counts_steps], "case")
@pytest.mark.parametrize("how", ["one count for two", "a parameter's element"])
def test_step_counts_in_shared_memory(case: Case, how: str) -> None:
    def scenario(make: Make) -> Optimizer:
        first, second = make_params([(4,), (5,)])
        optimizer = make([first, second], **({"foreach": False} if case.has_fallback else {}))
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

    left_to_torch(case, scenario, "shares memory with")


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


def written_option(how: str, make: Make) -> tuple[Optimizer, list[Tensor]]:
    """An option that is a tensor, in memory that the step writes."""
    w = Parameter(torch.ones(1))
    learned = torch.tensor([0.5, 0.6])
    optimizer: Optimizer
    if how == "a parameter":
        lr = learned[0].detach().clone()
        params = [lr, w]
        optimizer = make(params, lr=lr)
    elif how == "a view of another group's parameter":
        params = [learned, w]
        optimizer = make([{"params": [learned]}, {"params": [w], "weight_decay": learned[1]}])
    elif how == "in a pair":
        params = [learned, w]
        optimizer = make([{"params": [learned]}, {"params": [w], "betas": (*learned,)}])
    elif how == "beside a parameter that is torch's":
        odd = Parameter(torch.ones(1, dtype=torch.complex64))
        params = [odd, w]
        optimizer = make(params)
        optimizer.param_groups[0]["lr"] = torch.view_as_real(odd.detach())[0, 0]
    else:
        params = [w]
        optimizer = make(params)
        for t in range(2):
            set_grads(params, t)
            optimizer.step()
        optimizer.param_groups[0]["lr"] = optimizer.state[w]["step"]
    return optimizer, params


WRITTEN_OPTIONS = {
    "a parameter": "SGD",
    "a view of another group's parameter": "SGD",
    "in a pair": "Adam",
    "beside a parameter that is torch's": "SGD",
    "a step count": "Adagrad",
}


@pytest.mark.parametrize("how", WRITTEN_OPTIONS)
def test_an_option_in_memory_that_the_step_writes(how: str) -> None:
    """The next parameter is stepped with what the one before has made of it."""
    results = []
    for module in (torch.optim, fusedopt):
        cls = getattr(module, WRITTEN_OPTIONS[how])
        optimizer, params = written_option(how, partial(cls, lr=0.1))
        for t in range(3):
            set_grads(params, t)
            optimizer.step()
        results.append([p.detach().clone() for p in params])
    torch.testing.assert_close(*results)


def hidden_gradient(how: str, memory: Tensor) -> tuple[Tensor, Tensor]:
    """A parameter's data and its gradient, which isn't a plain tensor and lies in this memory."""
    if how == "sparse":
        values = memory.reshape(2, 2)
        return torch.zeros(2, 2), torch.sparse_coo_tensor(torch.tensor([[0, 1]]), values, (2, 2))
    number = torch.view_as_complex(memory.reshape(2, 2))
    if how == "negative":
        return torch.zeros(2), number.conj().imag
    return torch.zeros(2, dtype=torch.complex64), number.conj()


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("how", ["sparse", "negative", "conjugate"])
def test_a_gradient_that_hides_another_parameters_memory(how: str, order: int) -> None:
    results = []
    for module in (torch.optim, fusedopt):
        written = Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        data, grad = hidden_gradient(how, written.detach())
        other = Parameter(data)
        optimizer = module.SGD([written, other][::order], lr=0.5)
        for _ in range(2):
            written.grad, other.grad = torch.ones(4), grad
            optimizer.step()
        results.append([written.detach(), other.detach()])
    torch.testing.assert_close(*results)


def test_a_wider_dtype_at_the_same_address_reaches_its_neighbour() -> None:
    results = []
    for module in (torch.optim, fusedopt):
        storage = torch.zeros(16).untyped_storage()
        floats = torch.tensor([]).set_(storage)
        doubles = torch.tensor([], dtype=torch.float64).set_(storage)
        a, b = Parameter(floats[:4]), Parameter(floats[4:8])
        optimizer = module.SGD([a, b], lr=0.5, weight_decay=0.3)
        a.grad, b.grad = torch.ones(4), torch.ones(4)
        optimizer.step()
        a.grad = None
        doubles[:4] = torch.tensor([1.0, 2.0, 3.0, 4.0])
        a.data = doubles[:4]
        a.grad = torch.ones(4, dtype=torch.float64)
        optimizer.step()
        results.append(doubles.clone())
    assert torch.equal(*results)
