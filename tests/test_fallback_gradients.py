"""Gradients that torch's own step gets unscaled or clipped: each element once, and no harm done."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch
from cases import CASES, Case, over, with_torch
from helpers import assert_identical, make_params, random
from torch import Tensor
from torch.optim import Optimizer

import fusedopt

WAYS = ["fused=False", "a subclass", "groups of another type"]


class Calling(Tensor):
    """A class whose code torch's step calls."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


class Unwritable(Calling):
    """A gradient that can't be changed in place."""

    def mul_(self, other: Any) -> Any:
        raise ValueError("not in place")

    def copy_(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("not in place")


def left_to_torch(params: list[Any], way: str, **options: Any) -> Optimizer:
    """An optimizer that torch steps, for one reason or another."""
    if way == "fused=False":
        return fusedopt.SGD(params, lr=1.0, fused=False, **options)
    if way == "a subclass":
        params = [*params, torch.zeros(2).as_subclass(Calling).requires_grad_()]
        params[-1].grad = torch.zeros(2)
    optimizer = fusedopt.SGD(params, lr=1.0, **options)
    if way == "groups of another type":
        optimizer.param_groups[0]["params"] = collections.deque(params)
    return optimizer


def gradients(kind: str) -> list[Tensor]:
    """Two gradients of three elements."""
    buffer = random((4,), 0)
    return {
        "one": [buffer[:3]] * 2,
        "two views": [buffer[:3], buffer[:3]],
        "overlapping": [buffer[:3], buffer[1:]],
        "expanded": [buffer[:1].expand(3), buffer[1:]],
        "of one element": [buffer[:1].expand(3), buffer[:3]],
        "an inference tensor": [inference((3,), 1), buffer[:3]],
    }[kind]


def inference(shape: tuple[int, ...], seed: int) -> Tensor:
    with torch.inference_mode():
        return random(shape, seed)


KINDS = ["one", "two views", "overlapping", "expanded", "of one element", "an inference tensor"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_shared_gradients_are_unscaled_once(kind: str, way: str) -> None:
    params = make_params([(3,), (3,)])
    grads = gradients(kind)
    expected = [p.detach() - g / 4 for p, g in zip(params, grads, strict=True)]
    unscaled = [g / 4 for g in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer: Any = left_to_torch(params, way)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    optimizer.step()
    assert_identical([p.detach() for p in params], expected)
    assert_identical([p.grad for p in params], unscaled)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_shared_gradients_are_clipped_once(kind: str, way: str) -> None:
    """As by the kernels. They are as they were afterwards, and the same objects."""
    results = []
    for other in (way, "kernels"):
        params = make_params([(3,), (3,)])
        grads = gradients(kind)
        before = [g.clone() for g in grads]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer: Any = left_to_torch(params, other, max_grad_norm=0.5)
        optimizer.step()
        assert_identical(grads, before)
        assert all(p.grad is g for p, g in zip(params, grads, strict=True))
        results.append([p.detach() for p in params])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("what", ["scale", "clip"])
def test_a_gradient_that_cant_be_multiplied(what: str) -> None:
    """Those before it have their values back."""
    params = make_params([(3,), (3,), (3,)])
    grads = [random((3,), 5), random((1,), 6).expand(3), random((3,), 7).as_subclass(Unwritable)]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    before = [g.as_subclass(Tensor).clone() for g in grads]
    weights = [p.detach().clone() for p in params]
    optimizer: Any = fusedopt.SGD(params, lr=1.0, max_grad_norm=0.5 if what == "clip" else None)
    if what == "scale":
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    with pytest.raises(ValueError, match="not in place"):
        optimizer.step()
    assert all(p.grad is g for p, g in zip(params, grads, strict=True))
    assert_identical([g.as_subclass(Tensor) for g in grads], before)
    assert_identical([p.detach() for p in params], weights)
    assert not hasattr(optimizer, "grad_scale")
    assert optimizer.grad_norm is None


@over([c for c in with_torch(CASES) if c.label in ("default", "all", "momentum")], "case")
def test_a_differentiable_step_that_clips(case: Case) -> None:
    """Its gradients are derivatives too: autograd keeps what the step has read of them."""
    results = []
    for module in (fusedopt, torch.optim):
        factor = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
        start = random((4,), 0).requires_grad_()
        param = start.clone()
        param.retain_grad()
        param.grad = gradient = factor * random((4,), 1)
        limit = {"max_grad_norm": 0.5} if module is fusedopt else {}
        optimizer = case.make([param], module=module, differentiable=True, **limit)
        if module is torch.optim:
            torch.nn.utils.clip_grad_norm_([param], 0.5)
        optimizer.step()
        if module is fusedopt:
            assert param.grad is gradient
        (param**3).sum().backward()
        results.append([param.detach(), start.grad, factor.grad])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("way", WAYS)
def test_an_overflow_notes_no_norm(way: str) -> None:
    params = make_params([(3,)])
    params[0].grad = torch.full((3,), torch.inf, dtype=torch.float64)
    optimizer: Any = left_to_torch(params, way, max_grad_norm=0.5)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(1.0)
    optimizer.step()
    assert optimizer.grad_norm is None
