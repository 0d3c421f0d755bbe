"""Gradients and states in another dtype than their parameter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import DTYPES, LAYOUTS, MAIN_CASES, SCALARS, Case, Layout, over
from helpers import assert_identical, contents, kernels, random
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt

SHAPES = ((7, 19), (300,), (), (0,), (2, 1000))


def make(dtype: torch.dtype) -> list[Parameter]:
    """Parameters whose values every dtype can hold."""
    return [Parameter(random(s, i).bfloat16().to(dtype)) for i, s in enumerate(SHAPES)]


def gradient(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    return random(shape, seed).bfloat16().to(dtype)


def run(optimizer: Optimizer, dtype: torch.dtype, steps: int = 3) -> list[Any]:
    """Steps with gradients of that dtype, whose values are the same for all."""
    params = optimizer.param_groups[0]["params"]
    for t in range(steps):
        for i, p in enumerate(params):
            set_gradient(p, gradient(p.shape, 10 * t + i, dtype))
        optimizer.step()
    return [[p.detach() for p in params], [optimizer.state.get(p, {}) for p in params]]


def set_gradient(param: Parameter, grad: Tensor) -> None:
    """What torch before 2.13 takes by way of `data` only."""
    if grad.dtype != param.dtype:
        if hasattr(param, "grad_dtype"):
            param.grad_dtype = None
        else:
            param.grad = torch.zeros_like(param)
            param.grad.data = grad
            return
    param.grad = grad


@over(DTYPES, "grad_dtype")
@over(DTYPES, "dtype")
@over(MAIN_CASES, "case")
def test_gradient_of_another_dtype(case: Case, dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    """The same values, the same bits; state has the parameter's dtype."""
    expected = run(case.make(make(dtype)), dtype)
    optimizer = case.make(make(dtype))
    found = run(optimizer, grad_dtype)
    assert kernels(optimizer) == {case.name.lower()}
    if grad_dtype != torch.float64:
        assert_identical(found, expected)
        return
    for ours, theirs in zip(found[0], expected[0], strict=True):  # computed in double
        rounding = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(ours, theirs, rtol=rounding, atol=rounding)


def test_float64_gradients_beyond_float32() -> None:
    """As torch promotes them: 1e39 is no infinity, and 1e-50 not 0."""
    for name, value in (("SGD", 1e39), ("Rprop", 1e-30), ("Rprop", 1e-50)):
        results = []
        for module in (torch.optim, fusedopt):
            param = Parameter(torch.ones(3))
            optimizer = getattr(module, name)([param])
            for _ in range(3):
                set_gradient(param, torch.full((3,), value, dtype=torch.float64))
                optimizer.step()
            results.append(param.detach())
        torch.testing.assert_close(*results)


@over([lay for lay in LAYOUTS if lay.id != "misaligned"], "layout")
@over([torch.float32, torch.bfloat16, torch.float64], "dtype")
@over(
    [c for c in MAIN_CASES if c.id in ("SGD-weight_decay", "AdamW-default", "RMSprop-all")], "case"
)
def test_in_each_layout(case: Case, dtype: torch.dtype, layout: Layout) -> None:
    other = torch.float32 if dtype != torch.float32 else torch.bfloat16
    found = []
    for grad_dtype in (dtype, other):
        values = random(layout.shape, 1).bfloat16().to(dtype)
        param = Parameter(layout.param(values))
        optimizer = case.make([param])
        for t in range(2):
            grad = layout.grad(gradient(layout.shape, 5 + t, grad_dtype))
            set_gradient(param, grad)
            optimizer.step()
        found.append([param.detach(), optimizer.state.get(param, {})])
    assert_identical(found[1], found[0])


@over([torch.float32, torch.float16], "state_dtype")
@over([c for c in MAIN_CASES if c.keeps_state], "case")
def test_state_of_another_dtype(case: Case, state_dtype: torch.dtype) -> None:
    """As it is when one step's rounding doesn't matter: in a wider dtype it is not rounded."""
    found = []
    for dtype in (torch.bfloat16, state_dtype):
        params = make(torch.bfloat16)
        optimizer = case.make(params)
        run(optimizer, torch.bfloat16, 1)
        for state in optimizer.state.values():
            for key in state.keys() - SCALARS:
                state[key] = state[key].to(dtype)
        for i, p in enumerate(params):
            set_gradient(p, gradient(p.shape, 70 + i, torch.bfloat16))
        before = contents(optimizer)
        try:
            optimizer.step()
        except RuntimeError as error:  # torch's lerp_ takes no other
            assert "expected" in str(error) and case.has_fallback
            assert_identical(contents(optimizer), before)
            return
        states = [
            {k: v.bfloat16() if k not in SCALARS else v for k, v in s.items()}
            for s in optimizer.state.values()
        ]
        found.append([[p.detach() for p in params], states])
        assert kernels(optimizer) == {case.name.lower()}
    if state_dtype != torch.float16:  # which rounds more than bfloat16 where numbers are tiny
        assert_identical(found[1], found[0])


@pytest.mark.parametrize("scale", [4.0, 0.5])
@over([torch.float32, torch.bfloat16], "dtype")
@over(MAIN_CASES, "case")
def test_scaled_gradients(case: Case, dtype: torch.dtype, scale: float) -> None:
    """Unscaled where they are, in their own dtype."""
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    found = []
    for grad_dtype in (dtype, other):
        params = make(dtype)
        optimizer: Any = case.make(params)
        for i, p in enumerate(params):
            set_gradient(p, gradient(p.shape, i, grad_dtype) * scale)
        optimizer.grad_scale = torch.tensor(scale)
        optimizer.found_inf = torch.tensor(0.0)
        optimizer.step()
        grads = [p.grad.to(torch.float32) for p in params]
        found.append([[p.detach() for p in params], optimizer.state_dict()["state"], grads])
    assert_identical(found[1], found[0])


def test_gradients_of_several_dtypes_at_once() -> None:
    dtypes = (torch.bfloat16, torch.float32, torch.float16, torch.bfloat16)
    params = make(torch.float32)
    optimizer = fusedopt.AdamW(params)
    twins = make(torch.float32)
    expected = fusedopt.AdamW(twins)
    for t in range(4):
        for i, (p, q) in enumerate(zip(params, twins, strict=True)):
            dtype = dtypes[(i + t) % len(dtypes)]
            set_gradient(p, gradient(p.shape, 10 * t + i, dtype))
            q.grad = gradient(q.shape, 10 * t + i, torch.float32)
        optimizer.step()
        expected.step()
    assert_identical([p.detach() for p in params], [p.detach() for p in twins])
    assert kernels(optimizer) == {"adamw"}
