"""Parameters and step counts that are unusual, and nothing to be refused; or only by ourselves."""

from __future__ import annotations

import pytest
import torch
from cases import CLASS_CASES, Case, over
from helpers import Make, assert_unchanged, contents, make_params, random, set_grads, step, twins
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
@over(CLASS_CASES, "case")
def test_an_empty_parameter_that_is_expanded(case: Case, shape: tuple[int, int]) -> None:
    """No element of it refers to another's memory."""

    def scenario(make: Make) -> Optimizer:
        empty = Parameter(torch.zeros(*shape)[:, :1].expand(*shape))
        optimizer = make([empty, *make_params([(3,)])])
        for t in range(2):
            step(optimizer, t)
        return optimizer

    twins(case, scenario)


@over([c for c in CLASS_CASES if c.counts_steps and not c.computes_with_step], "case")
@pytest.mark.parametrize("value", [torch.ones(3), torch.tensor(3 + 0j), torch.ones(0)])
def test_a_step_count_that_the_rule_doesnt_use(case: Case, value: Tensor) -> None:
    """It is counted, as torch counts it."""
    results = []
    for module in (torch.optim, fusedopt):
        params = make_params([(3,), (2,)])
        optimizer = case.make(params, module)
        step(optimizer, 0)
        optimizer.state[params[0]]["step"] = value.clone()
        step(optimizer, 1)
        results.append([p.detach() for p in params] + [optimizer.state[params[0]]["step"]])
    torch.testing.assert_close(*results)


@over(["Adam", "RMSprop"], "name")
def test_a_step_count_that_torchs_part_cant_count(name: str) -> None:
    """Found before the first of torch's parameters moves."""
    params = [Parameter(random((2,), i).to(torch.complex128)) for i in range(2)]
    optimizer = getattr(fusedopt, name)(params)
    set_grads(params, 0)
    optimizer.step()
    optimizer.state[params[1]]["step"] = torch.tensor(1, dtype=torch.uint16)
    before = contents(optimizer)
    with pytest.raises(RuntimeError, match=r"\['params'\]\[1\]: state\['step'\]"):
        optimizer.step()
    assert_unchanged(optimizer, before)


def test_an_object_whose_class_changes() -> None:
    """Its plan is the new class's."""
    results = []
    for module in (torch.optim, fusedopt):
        (param,) = make_params([(3,)])
        optimizer = module.Adam([param], lr=0.1)
        step(optimizer, 0)
        optimizer.__class__ = module.SGD
        optimizer.param_groups[0].update(momentum=0, dampening=0, nesterov=False)
        step(optimizer, 1)
        results.append(param.detach())
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("state", [None, {}])
def test_setstate_of_an_object_that_has_groups(state: dict[str, int] | None) -> None:
    """Nothing of its own choice is lost, though before and after are the same dicts."""
    for fused in (None, False, True):
        optimizer = fusedopt.SGD(make_params([(3,)]), fused=fused)
        before = dict(optimizer.param_groups[0])
        optimizer.__setstate__(optimizer.__getstate__() if state is None else dict(state))
        assert optimizer.param_groups[0] == before


def test_differentiable_in_the_defaults_only() -> None:
    """They decide whether torch's step is recorded."""
    results = []
    for module in (torch.optim, fusedopt):
        param = torch.ones(2, requires_grad=True) * 1
        param.retain_grad()
        param.sum().backward(retain_graph=True)
        optimizer = module.SGD([param], lr=0.1, differentiable=True)
        optimizer.param_groups[0]["differentiable"] = False
        optimizer.step()
        results.append((param.tolist(), type(param.grad_fn).__name__))
    assert results[0] == results[1]
