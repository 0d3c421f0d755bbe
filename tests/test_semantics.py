"""Gradients that come and go, groups, options, schedulers: a run ends where torch's ends."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from cases import CASES, CLASS_CASES, MAIN_CASES, Case, case, over, with_torch
from helpers import Make, all_params, assert_same, make_params, random, set_grads, step, twins
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt


@over(CASES, "case")
def test_run(case: Case) -> None:
    def scenario(make: Make) -> Optimizer:
        optimizer = make(make_params())
        for t in range(5):
            step(optimizer, t)
        return optimizer

    twins(case, scenario)


@over(CASES, "case")
def test_late_and_missing_gradients(case: Case) -> None:
    """Each parameter counts its own steps; one without a gradient is left alone."""

    def scenario(make: Make) -> Optimizer:
        params = make_params()
        optimizer = make(params)
        optimizer.step()  # no gradient at all
        for t, present in enumerate(([0], [0, 2], [], [1, 2, 3], [0, 1, 2, 3], [3])):
            step(optimizer, t, [params[i] for i in present])
        return optimizer

    twins(case, scenario)


@over(MAIN_CASES, "case")
def test_freezing(case: Case) -> None:
    def scenario(make: Make) -> Optimizer:
        params = make_params()
        optimizer = make(params)
        for t in range(6):
            params[1].requires_grad_(t % 2 == 0)
            params[2].requires_grad_(t > 2)
            step(optimizer, t, [p for p in params if p.requires_grad])
        params[0].requires_grad_(False)  # frozen, with a gradient: torch updates it
        step(optimizer, 6)
        return optimizer

    twins(case, scenario)


@pytest.mark.parametrize("set_to_none", [True, False])
@over(MAIN_CASES, "case")
def test_zero_grad(case: Case, set_to_none: bool) -> None:
    """A zeroed gradient is a step, an absent one is none."""

    def scenario(make: Make) -> Optimizer:
        params = make_params()
        optimizer = make(params)
        for t in range(4):
            optimizer.zero_grad(set_to_none=set_to_none)
            torch.stack([(p * p).sum() for p in params[: t + 1]]).sum().backward()
            optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
        optimizer.step()
        return optimizer

    twins(case, scenario)


@over(MAIN_CASES, "case")
def test_add_param_group(case: Case) -> None:
    def scenario(make: Make) -> Optimizer:
        params = make_params()
        optimizer = make(params[:2])
        step(optimizer, 0)
        optimizer.add_param_group({"params": params[2], "lr": 0.3})
        step(optimizer, 1)
        optimizer.add_param_group({"params": params[3:], "weight_decay": 0.4})
        step(optimizer, 2)
        step(optimizer, 3)
        return optimizer

    twins(case, scenario)


GROUP_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "SGD": [{"momentum": 0.0}, {"momentum": 0.5, "dampening": 0.2}, {"nesterov": True}],
    "Adagrad": [{"lr_decay": 0.5}, {"eps": 0.3}, {"initial_accumulator_value": 0.7}],
    "RMSprop": [{"centered": True}, {"momentum": 0.4}, {"alpha": 0.5, "eps": 0.1}],
    "Adadelta": [{"rho": 0.5}, {"eps": 0.1}, {"lr": 0.4}],
    "Adam": [{"amsgrad": True}, {"betas": (0.5, 0.6)}, {"decoupled_weight_decay": True}],
    "AdamW": [{"amsgrad": True}, {"betas": (0.5, 0.6)}, {"eps": 0.1}],
    "Adamax": [{"eps": 0.2}, {"betas": (0.5, 0.6)}, {"weight_decay": 0.1}],
    "NAdam": [{"momentum_decay": 0.3}, {"betas": (0.5, 0.6)}, {"decoupled_weight_decay": True}],
    "ASGD": [{"lambd": 0.4}, {"alpha": 0.2}, {"t0": 0.0}],
    "Lion": [{"betas": (0.5, 0.6)}, {"weight_decay": 0.1}, {"lr": 0.3}],
    "Rprop": [{"etas": (0.3, 1.9)}, {"step_sizes": (0.01, 0.02)}, {"lr": 0.3}],
    "RAdam": [{"eps": 0.2}, {"betas": (0.5, 0.6)}, {"decoupled_weight_decay": True}],
}


@over(MAIN_CASES, "case")
def test_options_per_group(case: Case) -> None:
    def scenario(make: Make) -> Optimizer:
        params = make_params()
        changes = [{"lr": 0.2, "maximize": True}, *GROUP_OPTIONS[case.name]]
        optimizer = make([{"params": [p], **o} for p, o in zip(params, changes, strict=True)])
        for t in range(4):
            step(optimizer, t)
        return optimizer

    twins(case, scenario)


@over(MAIN_CASES, "case")
def test_options_changed_between_steps(case: Case) -> None:
    """Numbers in any form torch takes; the next step uses what is there."""
    double = partial(torch.tensor, dtype=torch.float64)  # torch computes in an option's dtype

    def scenario(make: Make) -> Optimizer:
        optimizer = make(make_params())
        group = optimizer.param_groups[0]
        changes = [
            ("lr", 0.2), ("lr", 1), ("lr", double(0.07)), ("lr", double([0.03])),
            ("weight_decay", 0), ("weight_decay", 0.3), ("maximize", True), ("maximize", False),
            ("lr", random((), 1).abs().numpy()[()]), ("maximize", 1),
        ]  # fmt: skip
        for t, (key, value) in enumerate(changes):
            group[key] = value
            step(optimizer, t)
        if "betas" in case.options:
            group["betas"] = [0.5, *(double(0.6) for _ in group["betas"][1:])]
            step(optimizer, 20)
        return optimizer

    twins(case, scenario)


@over(MAIN_CASES, "case")
def test_tensor_lr_changed_in_place(case: Case) -> None:
    def scenario(make: Make) -> Optimizer:
        optimizer = make(make_params(), lr=torch.tensor(0.1, dtype=torch.float64))
        for t in range(4):
            step(optimizer, t)
            optimizer.param_groups[0]["lr"].mul_(0.5)
        return optimizer

    ours, _ = twins(case, scenario)
    assert isinstance(ours.param_groups[0]["lr"], Tensor)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_momentum_switched_between_steps(momentum: float) -> None:
    """torch creates the buffer when it is first needed, and keeps one that is not."""

    def scenario(make: Make) -> Optimizer:
        optimizer = make(make_params(), momentum=momentum)
        for t in range(6):
            optimizer.param_groups[0]["momentum"] = 0.9 - momentum if t % 3 else momentum
            step(optimizer, t)
        return optimizer

    twins(case("SGD-dampening"), scenario)


def test_sgd_dampening_not_applied_at_first() -> None:
    p = Parameter(torch.zeros(3))
    optimizer = fusedopt.SGD([p], lr=1.0, momentum=0.5, dampening=0.75)
    p.grad = torch.ones(3)
    optimizer.step()
    assert p.tolist() == [-1.0] * 3
    optimizer.step()
    assert p.tolist() == [-1.75] * 3


@over(MAIN_CASES, "case")
def test_tied_weights(case: Case) -> None:
    def scenario(make: Make) -> Optimizer:
        torch.manual_seed(0)
        model = torch.nn.Sequential(*(torch.nn.Linear(4, 4, dtype=torch.float64) for _ in "ab"))
        model[1].weight = model[0].weight
        optimizer = make(model.parameters())
        for t in range(3):
            optimizer.zero_grad()
            model(random((5, 4), t)).square().sum().backward()
            optimizer.step()
        assert len(all_params(optimizer)) == 3
        return optimizer

    twins(case, scenario)


@over(with_torch(MAIN_CASES), "case")
def test_shared_gradients(case: Case) -> None:
    """Two parameters may read the same gradient, and a gradient may be its parameter's memory."""

    def scenario(make: Make) -> Optimizer:
        a, b, c = make_params([(6,), (6,), (6,)])
        optimizer = make([a, b, c])
        for t in range(3):
            a.grad = b.grad = random((6,), t)
            if not optimizer.param_groups[0].get("decoupled_weight_decay"):
                c.grad = c.detach()  # (torch decays the parameter first, and the gradient with it)
            optimizer.step()
        c.grad = None
        return optimizer

    twins(case, scenario)


@over(CLASS_CASES, "case")
def test_default_dtype_float64(case: Case) -> None:
    """torch makes the step count in the default dtype."""
    torch.set_default_dtype(torch.float64)

    def scenario(make: Make) -> Optimizer:
        optimizer = make(make_params(dtype=torch.float32))
        for t in range(3):
            step(optimizer, t)
        return optimizer

    ours, theirs = (scenario(lambda p, m=m: case.make(p, m)) for m in (fusedopt, torch.optim))
    assert_same(ours, theirs, rtol=1e-5, atol=1e-6)
    for p in all_params(ours):
        if "step" in ours.state.get(p, {}):
            assert ours.state[p]["step"].dtype == torch.float64


@over(with_torch(MAIN_CASES), "case")
def test_efficient_zero_gradient(case: Case) -> None:
    """A zero tensor of autograd's has no memory at all."""

    def scenario(make: Make) -> Optimizer:
        params = make_params()
        optimizer = make(params)
        step(optimizer, 0)
        params[0].grad = torch._efficientzerotensor(params[0].shape, dtype=torch.float64)
        optimizer.step()
        set_grads(params, 1)
        optimizer.step()
        return optimizer

    twins(case, scenario)
