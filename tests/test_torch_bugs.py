"""What torch 2.13 gets wrong in its fused CPU steps is right here."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import MAIN_CASES, Case, over, with_torch
from helpers import make_params, random, set_grads, step
from torch.nn import Parameter

import fusedopt


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_updates_every_element_in_low_precision(dtype: torch.dtype, momentum: float) -> None:
    p = Parameter(torch.ones(1000, dtype=dtype))
    p.grad = torch.ones(1000, dtype=dtype)
    fusedopt.SGD([p], lr=0.5, momentum=momentum, fused=True).step()
    assert (p == 0.5).all()


def test_sgd_momentum_after_an_overflow_on_the_first_step() -> None:
    p = Parameter(torch.ones(1000))
    optimizer = fusedopt.SGD([p], lr=0.5, momentum=0.5, fused=True)
    p.grad = torch.full((1000,), torch.inf)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(1.0)
    optimizer.step()
    assert optimizer.state[p].get("momentum_buffer") is None
    p.grad = torch.full((1000,), 2.0)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert (optimizer.state[p]["momentum_buffer"] == 1).all()
    assert (p == 0.5).all()


def test_sgd_momentum_with_a_late_gradient() -> None:
    a, b = make_params([(3,), (4,)])
    optimizer = fusedopt.SGD([a, b], lr=0.5, momentum=0.9, fused=True)
    step(optimizer, 0, [a])
    step(optimizer, 1)
    assert torch.equal(optimizer.state[b]["momentum_buffer"], b.grad)


@over(with_torch(MAIN_CASES), "case")
def test_strided_parameter(case: Case) -> None:
    base = torch.zeros(10, 10)
    p = Parameter(base[:, ::2])
    p.grad = torch.ones(10, 5)
    case.make([p], fused=True).step()
    assert (p != 0).all()
    assert (base[:, 1::2] == 0).all()


@over(with_torch(MAIN_CASES), "case")
def test_gradient_laid_out_unlike_its_parameter(case: Case) -> None:
    grad = random((6, 5), 1)
    results = []
    for laid_out in (grad, grad.t().contiguous().t()):
        p = Parameter(random((6, 5), 0))
        p.grad = laid_out
        case.make([p], fused=True).step()
        results.append(p.detach())
    assert torch.equal(results[0], results[1])


@over(with_torch(MAIN_CASES), "case")
def test_checkpoint_that_is_not_fused(case: Case) -> None:
    source = case.make(make_params(), torch.optim)
    step(source, 0)
    optimizer = case.make(make_params(), fused=True)
    optimizer.load_state_dict(copy.deepcopy(source.state_dict()))
    assert optimizer.param_groups[0]["fused"] is True
    step(optimizer, 1)
    assert {row.kernel for row in fusedopt.explain(optimizer).rows} == {case.name.lower()}


def test_nesterov_leaves_gradients_alone() -> None:
    """torch's foreach step adds the momentum to the gradients themselves."""
    params = make_params()
    optimizer = fusedopt.SGD(params, lr=0.1, momentum=0.9, nesterov=True, foreach=True)
    for t in range(2):
        set_grads(params, t)
        before = [p.grad.clone() for p in params]
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))
