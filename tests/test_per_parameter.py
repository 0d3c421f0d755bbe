"""Steps in hooks, during the backward pass, with one optimizer for each parameter."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import CLASS_CASES, Case, case, over
from helpers import assert_identical, random
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

import fusedopt

STEPS = 3
MAIN = case("AdamW-all")
Make = Callable[[Iterable[Parameter]], Optimizer]


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 6)).double()


def loss_of(model: nn.Module, t: int = 0) -> Tensor:
    return model(random((4, 6), t)).square().mean()


def step_in_hooks(params: Iterable[Parameter], make: Make) -> dict[Parameter, Optimizer]:
    """As docs/per-parameter.md has it."""
    optimizers = {p: make([p]) for p in params if p.requires_grad}

    def step(p: Tensor) -> None:
        optimizers[p].step()  # type: ignore[index]
        p.grad = None

    for p in optimizers:
        p.register_post_accumulate_grad_hook(step)
    return optimizers


def contents(params: Iterable[Parameter], optimizers: dict[Parameter, Optimizer]) -> list[Any]:
    return [[p.detach(), dict(optimizers[p].state[p])] for p in params if p in optimizers]


@over(CLASS_CASES, "case")
def test_the_same_bits_as_in_a_loop(case: Case) -> None:
    looped, hooked = make_model(), make_model()
    optimizer = case.make(looped.parameters())
    optimizers = step_in_hooks(hooked.parameters(), case.make)
    for t in range(STEPS):
        loss_of(looped, t).backward()
        optimizer.step()
        optimizer.zero_grad()
        loss_of(hooked, t).backward()
    in_one = [[p.detach(), dict(optimizer.state[p])] for p in looped.parameters()]
    assert_identical(contents(hooked.parameters(), optimizers), in_one)


def plain(model: nn.Sequential, t: int) -> None:
    loss_of(model, t).backward()


def with_a_hook_that_raises(model: nn.Sequential, t: int) -> None:
    """What came before is stepped, what comes later isn't."""

    def refuse(p: Tensor) -> None:
        raise RuntimeError("refused")

    handle = model[2].weight.register_hook(refuse)
    try:
        loss_of(model, t).backward()
    finally:
        handle.remove()


def through_a_graph_twice(model: nn.Sequential, t: int) -> None:
    """The second pass needs weights that the first one's steps have changed."""
    loss = loss_of(model, t)
    loss.backward(retain_graph=True)
    loss.backward()


def with_a_graph_of_gradients(model: nn.Sequential, t: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this makes a cycle
        loss_of(model, t).backward(create_graph=True)


def with_a_gradient_penalty(model: nn.Sequential, t: int) -> None:
    x = random((4, 6), t).requires_grad_()
    loss = model(x).square().mean()
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    (loss + slope.square().sum()).backward()


def of_some_parameters(model: nn.Sequential, t: int) -> None:
    loss_of(model, t).backward(inputs=[model[0].bias, model[3].weight])


def of_a_part(model: nn.Sequential, t: int) -> None:
    """The others get no gradient."""
    loss_of(model[:3], t).backward()


def checkpointed(model: nn.Sequential, t: int) -> None:
    x = checkpoint(model[:3], random((4, 6), t), use_reentrant=False)
    model[3](x).square().mean().backward()


def checkpointed_by_passes_in_passes(model: nn.Sequential, t: int) -> None:
    """A layer that two of them share is stepped twice, each time by a part of its gradient."""
    x = random((4, 6), t).requires_grad_()
    for part in (model[:3], model[2:], model[2:]):
        x = checkpoint(part, x, use_reentrant=True)
    x.square().mean().backward()


def with_a_pass_in_a_hook(model: nn.Sequential, t: int) -> None:
    """Of another graph. It mustn't come to the hook's own parameter: there torch waits forever."""

    def another(p: Tensor) -> None:
        with torch.enable_grad():
            loss_of(model[:1], t).backward()

    handle = model[3].bias.register_post_accumulate_grad_hook(another)
    loss_of(model, t).backward()
    handle.remove()


HOSTILE = (
    plain,
    with_a_hook_that_raises,
    through_a_graph_twice,
    with_a_graph_of_gradients,
    with_a_gradient_penalty,
    of_some_parameters,
    of_a_part,
    checkpointed,
    checkpointed_by_passes_in_passes,
    with_a_pass_in_a_hook,
)


def tied(model: nn.Sequential) -> None:
    model[3].weight = model[0].weight


def frozen(model: nn.Sequential) -> None:
    model[2].requires_grad_(False)


def as_it_is(model: nn.Sequential) -> None:
    pass


def outcome(
    change: Callable[[nn.Sequential], None],
    program: Callable[[nn.Sequential, int], None],
    module: ModuleType,
) -> list[Any]:
    """Parameters, states, which gradients are left, and errors, after each step."""
    model = make_model()
    change(model)
    optimizers = step_in_hooks(model.parameters(), lambda params: MAIN.make(params, module))
    found: list[Any] = []
    for t in range(STEPS):
        error = ""
        try:
            program(model, t)
        except RuntimeError as raised:
            error = re.sub(r"version \d+", "version", str(raised))  # torch counts more of them
        left = [p.grad is not None for p in model.parameters()]
        model.zero_grad()
        states = [{k: v.clone() for k, v in o.state[p].items()} for p, o in optimizers.items()]
        params = [p.detach().clone() for p in model.parameters()]
        found.append([params, states, left, error])
    return found


@pytest.mark.parametrize("change", [as_it_is, tied, frozen])
@pytest.mark.parametrize("program", HOSTILE)
def test_hostile_passes_do_what_they_do_with_torchs(
    program: Callable[[nn.Sequential, int], None], change: Callable[[nn.Sequential], None]
) -> None:
    ours = outcome(change, program, fusedopt)
    theirs = outcome(change, program, torch.optim)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine[:2], other[:2], rtol=1e-11, atol=1e-12)
        assert mine[2:] == other[2:]
    expected = {with_a_hook_that_raises: "refused", through_a_graph_twice: "inplace operation"}
    assert change is frozen or all(expected.get(program, "") in found[3] for found in ours)
    assert program in expected or not any(found[3] for found in ours)


@pytest.mark.parametrize("overflow", [False, True])
def test_a_gradient_scaler_judges_each_parameter_by_itself(overflow: bool) -> None:
    """Unlike in a loop, where one overflow skips all."""
    results = []
    for module in (fusedopt, torch.optim):
        model = make_model()
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        optimizers = {p: MAIN.make([p], module) for p in model.parameters()}

        def step(p: Tensor, scaler: Any = scaler, optimizers: Any = optimizers) -> None:
            scaler.step(optimizers[p])
            p.grad = None

        for p in optimizers:
            p.register_post_accumulate_grad_hook(step)
        if overflow:
            model[2].weight.register_hook(lambda grad: grad * torch.inf)
        before = model[2].weight.detach().clone()
        for t in range(STEPS):
            scaler.scale(loss_of(model, t)).backward()
            scaler.update()
        assert torch.equal(model[2].weight, before) == overflow
        assert scaler.get_scale() == (1.0 if overflow else 8.0)
        results.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-12)
