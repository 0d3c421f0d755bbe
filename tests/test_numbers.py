"""Step counts and options that are out of the usual: what torch computes, or an error in time.

Also variances of nearly constant gradients, which cancel.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from cases import CLASS_CASES, Case, case, over
from helpers import assert_unchanged, contents, make_params, random, set_grads, step
from reference import REAL, Array, to_array
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt

COUNTING = [c for c in CLASS_CASES if c.counts_steps] + [case("Adagrad-lr_decay")]
COUNTS = (
    math.inf, math.nan, -math.inf, -5.0, -2.0, -1.5, -1.0, -0.5, 0.5, 1.5, 1000.25, 2.0**40,
    2.0**62, 2.0**64, 1e30,
)  # fmt: skip


def after(case: Case, module: ModuleType, count: Tensor) -> tuple[Optimizer, list[Parameter]]:
    """An optimizer whose second parameter has that step count."""
    params = make_params([(3,), (2,)])
    optimizer = case.make(params, module)
    step(optimizer, 0)
    optimizer.state[params[1]]["step"] = count.clone()
    set_grads(params, 1)
    return optimizer, params


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@over(COUNTING, "case")
def test_odd_step_counts(case: Case, dtype: torch.dtype, count: float) -> None:
    value = torch.tensor(count, dtype=dtype)
    theirs, twins = after(case, torch.optim, value)
    ours, params = after(case, fusedopt, value)
    for _ in range(2):
        before = contents(ours)
        try:
            theirs.step()
        except (RuntimeError, ZeroDivisionError):
            with pytest.raises((RuntimeError, ZeroDivisionError), match=r"param_groups\[0\]"):
                ours.step()
            assert_unchanged(ours, before)
            return
        try:
            ours.step()
        except RuntimeError as error:
            assert "step -inf" in str(error)  # where it is the power of a beta
            return
        except ZeroDivisionError:
            if case.has_fallback:
                raise
            assert not twins[1].isfinite().any()  # the reference's quotients, which don't raise
            assert_unchanged(ours, before)
            return
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12, equal_nan=True)
        torch.testing.assert_close(ours.state[p]["step"], theirs.state[q]["step"], equal_nan=True)


@pytest.mark.parametrize("dtype", [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int8,
    torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.bool, torch.complex64,
])  # fmt: skip
@pytest.mark.parametrize("count", [3, 120])
@over(COUNTING, "case")
def test_step_counts_of_each_dtype(case: Case, count: int, dtype: torch.dtype) -> None:
    """Counted as torch counts, with its rounding and overflow; or refused before anything moves."""
    value = torch.tensor(count).to(dtype)
    theirs, twins = after(case, torch.optim, value)
    ours, params = after(case, fusedopt, value)
    before = contents(ours)
    try:
        after(case, torch.optim, value)[0].step()
        refused = dtype.is_complex and case.computes_with_step  # torch may drop its imaginary 0
    except (RuntimeError, TypeError):
        refused = True
    if refused:
        with pytest.raises(RuntimeError, match=r"\['params'\]\[1\]: state\['step'\]"):
            ours.step()
        assert_unchanged(ours, before)
        return
    powers = not {"betas", "lambd"}.isdisjoint(case.options)  # that no count below 0 may have
    for _ in range(10 if count > 100 and dtype == torch.int8 and not powers else 3):
        ours.step()
        theirs.step()
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(ours.state[p]["step"], theirs.state[q]["step"])


@pytest.mark.parametrize(("dtype", "last"), [(torch.bfloat16, 255.0), (torch.float16, 2047.0)])
@over(COUNTING, "case")
def test_counts_that_no_longer_grow(case: Case, dtype: torch.dtype, last: float) -> None:
    """A 16-bit count ends where 1 more is rounded away, as when torch counts."""
    value = torch.tensor(last).to(dtype)
    ours, params = after(case, fusedopt, value)
    theirs, twins = after(case, torch.optim, value)
    for _ in range(3):
        ours.step()
        theirs.step()
    assert ours.state[params[1]]["step"] == theirs.state[twins[1]]["step"] == last + 1
    torch.testing.assert_close(params[1], twins[1], rtol=1e-11, atol=1e-12)


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((c.id, {option: 1e300}) for c in CLASS_CASES for option in ("lr", "weight_decay")),
    *((c.id, {"lr": 1e39}) for c in CLASS_CASES),
    ("SGD-all", {"momentum": 1e300}),
    ("SGD-dampening", {"dampening": -1e300}),
    ("RMSprop-all", {"alpha": 1e300}),
    ("Adadelta-all", {"rho": -1e300}),
    ("Adam-all", {"betas": (1.0, 0.9)}),
    ("Adam-all", {"betas": (0.9, 1.5)}),
    ("Adam-all", {"betas": (1e300, 0.9)}),
    ("AdamW-all", {"betas": (1.0, 1.0)}),
    ("Adagrad-lr_decay", {"lr_decay": -0.5}),
]


# Beyond float16, and beyond bfloat16, but not beyond float32.
NARROW = [
    (dtype, id_, {option: value})
    for dtype, value in ((torch.float16, 7e4), (torch.bfloat16, 3.395e38))
    for id_, option in (
        *((c.id, option) for c in CLASS_CASES for option in ("lr", "weight_decay")),
        ("RMSprop-momentum", "lr"),
        ("SGD-all", "momentum"),
        ("SGD-momentum", "momentum"),
    )
]


@pytest.mark.parametrize(
    "dtype, case_id, options", [*((torch.float32, *o) for o in OPTIONS), *NARROW], ids=str
)
def test_options_that_torch_refuses(
    dtype: torch.dtype, case_id: str, options: dict[str, Any]
) -> None:
    """Where torch's for-loop raises, ours does, and names the group; nothing has moved."""
    if not case(case_id).has_fallback:
        pytest.skip("torch has none")
    refused = []
    for module in (torch.optim, fusedopt):
        params = make_params([(3,), (2,)], dtype)
        optimizer = case(case_id).make([{"params": params[:1]}, {"params": params[1:]}], module)
        for t in range(2):
            step(optimizer, t)
        optimizer.param_groups[1].update(options)
        set_grads(params, 3)
        before = contents(optimizer)
        try:
            optimizer.step()
        except (RuntimeError, ZeroDivisionError) as error:
            refused.append(str(error))
            if module is fusedopt:
                assert "param_groups[1]" in str(error)
                assert_unchanged(optimizer, before)
        else:
            refused.append("")
    assert bool(refused[0]) == bool(refused[1]), refused


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e30])
@pytest.mark.parametrize("option", ["lr", "weight_decay", "eps"])
@over(CLASS_CASES, "case")
def test_options_that_torch_takes(case: Case, option: str, value: float) -> None:
    if option not in case.options:
        return
    results = []
    for module in (torch.optim, fusedopt):
        params = make_params([(3,), (2,)], torch.float32)
        optimizer = case.make(params, module)
        step(optimizer, 0)
        optimizer.param_groups[0][option] = value
        step(optimizer, 1)
        results.append([p.detach() for p in params])
    for theirs, ours in zip(*results, strict=True):
        finite = theirs.isfinite()
        if case.kwargs.get("centered"):
            # Infinity less a square is NaN in torch if its kernel rounds the square to infinity
            # first: one without a fused multiply-add.
            assert ours[finite].isfinite().all()
        else:
            assert torch.equal(ours.isfinite(), finite)
        torch.testing.assert_close(ours[finite], theirs[finite], rtol=1e-5, atol=1e-30)


def test_an_infinite_lr_without_weight_decay() -> None:
    """Nothing is multiplied by 1 - inf * 0 then."""
    results = []
    for module in (torch.optim, fusedopt):
        param = Parameter(torch.ones(1))
        optimizer = module.AdamW([param], lr=math.inf, weight_decay=0)
        set_grads([param], 0)
        optimizer.step()
        results.append(param.item())
    assert results[0] == results[1] == math.copysign(math.inf, -param.grad.item())


@pytest.mark.parametrize("betas", [(0.9, 2.0), (1.0, 0.9), (2.0, 0.9)])
def test_betas_that_are_tensors_divide_by_zero(betas: tuple[float, float]) -> None:
    """Where floats raise, tensors become infinite or none."""
    results = []
    for module in (torch.optim, fusedopt):
        (param,) = make_params([(4,)], torch.float32)
        optimizer = module.Adam([param], lr=0.1)
        optimizer.param_groups[0]["betas"] = tuple(torch.tensor(b) for b in betas)
        set_grads([param], 0)
        optimizer.step()
        results.append(param.detach())
    torch.testing.assert_close(*results, equal_nan=True)


def buffer_of(module: ModuleType, grads: list[Tensor], alpha: float, **flags: Any) -> Tensor:
    """RMSprop's momentum buffer after these gradients."""
    param = Parameter(torch.zeros_like(grads[0]))
    optimizer = module.RMSprop(
        [param], lr=1e-3, alpha=alpha, momentum=0.9, eps=1e-8, centered=True, **flags
    )
    for grad in grads:
        param.grad = grad
        optimizer.step()
    return optimizer.state[param]["momentum_buffer"]


def true_buffer(grads: list[Tensor], alpha: float) -> Array:
    """The same in long double."""
    square, mean, buffer = (np.zeros(grads[0].shape, dtype=REAL) for _ in range(3))
    for grad in grads:
        g = to_array(grad)
        square = REAL(alpha) * square + (1 - REAL(alpha)) * g * g
        mean = REAL(alpha) * mean + (1 - REAL(alpha)) * g
        buffer = REAL(0.9) * buffer + g / (np.sqrt(square - mean * mean) + REAL(1e-8))
    return buffer


@pytest.mark.parametrize("noise", [0.0, 1e-9, 1e-6, 1e-3])
@pytest.mark.parametrize("alpha", [0.9, 0.99, 0.999])
@over([torch.float32, torch.float64, torch.bfloat16, torch.float16], "dtype")
def test_variance_of_nearly_constant_gradients(
    dtype: torch.dtype, alpha: float, noise: float
) -> None:
    """No NaN by rounding; and as accurate as torch where torch's result is still one."""
    for level in (1.0, 0.1, 0.3):
        grads = [(level * (1 + noise * random((50,), t))).to(dtype) for t in range(120)]
        ours = buffer_of(fusedopt, grads, alpha)
        assert not ours.isnan().any()
        if dtype not in (torch.float32, torch.float64):
            continue
        truth = true_buffer(grads, alpha)
        errors = [
            np.abs(to_array(found) / truth - 1).max()
            for found in (
                ours,
                buffer_of(torch.optim, grads, alpha, foreach=False),
                buffer_of(torch.optim, grads, alpha, foreach=True),
            )
        ]
        if max(errors) < 1e-3:
            assert errors[0] <= 1.5 * np.nanmin(errors[1:]) + torch.finfo(dtype).eps, errors


def test_a_variance_that_no_rounding_explains_is_none_as_in_torch() -> None:
    results = []
    for module in (fusedopt, torch.optim):
        param = Parameter(torch.ones(2))
        param.grad = torch.ones(2)
        optimizer = module.RMSprop([param], centered=True)
        optimizer.step()
        optimizer.state[param]["grad_avg"].fill_(9.0)
        optimizer.step()
        results.append(param.detach())
    assert results[0].isnan().all() and results[1].isnan().all()


@over([torch.float32, torch.float64], "dtype")
def test_variance_of_huge_gradients(dtype: torch.dtype) -> None:
    """Squares that overflow make infinite averages, from which nothing is subtracted as NaN."""
    huge = 3e38 if dtype == torch.float32 else 1e308
    grads = torch.tensor([huge, -huge, huge / 1e100, 1.0, math.inf, math.nan], dtype=dtype)
    results = []
    for module in (fusedopt, torch.optim):
        param = Parameter(torch.ones(6, dtype=dtype))
        optimizer = module.RMSprop([param], centered=True, lr=0.1)
        for t in range(3):
            param.grad = grads if t != 1 else torch.ones(6, dtype=dtype)
            optimizer.step()
        results.append(param.detach())
    ours, torchs = results
    # Torch's are NaN there on processors whose kernels don't fuse multiplication and addition.
    is_huge = grads.isfinite() & (grads.abs() > torch.finfo(dtype).max ** 0.5)
    assert is_huge.sum() == (2 if dtype == torch.float32 else 3)
    assert (ours[is_huge] == 1.0).all()
    torch.testing.assert_close(ours[~is_huge], torchs[~is_huge], equal_nan=True)
