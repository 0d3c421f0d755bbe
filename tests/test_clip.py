"""Norms and clipping: torch.nn.utils' results, and one value everywhere."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from cases import DTYPES, LAYOUTS, Layout, over
from gradients import ORDERS, exact_norm, grads_of, make_grads, params_with
from helpers import assert_identical, random
from torch.nn import Parameter
from torch.nn import utils as torchs

import fusedopt


@over(DTYPES, "dtype")
@over(ORDERS, "order")
def test_as_torch(order: Any, dtype: torch.dtype) -> None:
    """In 16 bits as torch in float32, because its norm has 16 bits there."""
    wide = dtype if dtype.itemsize > 2 else torch.float32
    grads = make_grads(dtype)
    ours, theirs = params_with(grads), params_with([grad.to(wide) for grad in grads])
    norm = fusedopt.clip_grad_norm_(ours, 1.0, norm_type=order)
    expected = torchs.clip_grad_norm_(theirs, 1.0, norm_type=order)
    rtol = 1e-13 if dtype == torch.float64 else 1e-6 if norm.dtype == wide else 0.01
    torch.testing.assert_close(norm, expected.to(norm.dtype), rtol=rtol, atol=0)
    for p, q in zip(ours, theirs, strict=True):
        assert p.grad is not None and q.grad is not None
        rtol = max(2 * rtol, torch.finfo(dtype).eps)
        torch.testing.assert_close(p.grad, q.grad.to(dtype), rtol=rtol, atol=0)
        assert p.grad._version == q.grad._version


@over(DTYPES, "dtype")
def test_the_norm_is_the_exact_one(dtype: torch.dtype) -> None:
    grads = make_grads(dtype)
    norm = fusedopt.get_total_norm(grads)
    assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert norm.shape == () and not norm.requires_grad
    assert abs(float(norm) / exact_norm(grads) - 1) <= 1e-7


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float16, 6e4),
        (torch.float16, 6e-8),
        (torch.bfloat16, 3e38),
        (torch.float32, 1e30),
        (torch.float32, 1e-45),
        (torch.float64, 1e300),
        (torch.float64, 1e-300),
        (torch.float64, 5e-324),
    ],
)
def test_no_square_overflows(dtype: torch.dtype, value: float) -> None:
    """Where torch's is infinite or 0."""
    grad = torch.full((9,), value, dtype=dtype)
    norm = fusedopt.get_total_norm([grad])
    expected = torch.tensor(3 * float(grad[0]), dtype=norm.dtype)
    torch.testing.assert_close(norm, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("others", [0.0, 1.0, 1e30, -math.inf, math.nan])
@pytest.mark.parametrize("value", [1e200, 1e-200])
@over(DTYPES, "dtype")
def test_no_square_overflows_beside_other_dtypes(
    dtype: torch.dtype, value: float, others: float
) -> None:
    wide = torch.full((5000,), value, dtype=torch.float64)
    grads = [wide, torch.full((5000,), others).to(dtype)]
    norm = fusedopt.get_total_norm(grads)
    torch.testing.assert_close(
        norm,
        torch.tensor(exact_norm(grads), dtype=torch.float64),
        rtol=1e-7,
        atol=0,
        equal_nan=True,
    )


@over(DTYPES, "dtype")
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@over((2.0, 1.0, math.inf), "order")
def test_nonfinite(value: float, order: float, dtype: torch.dtype) -> None:
    grads = make_grads(dtype)
    grads[2][4097] = value
    ours, theirs = params_with(grads), params_with(grads)
    with pytest.raises(RuntimeError) as error:
        fusedopt.clip_grad_norm_(ours, 1.0, order, error_if_nonfinite=True)
    with pytest.raises(RuntimeError) as theirs_error:
        torchs.clip_grad_norm_(theirs, 1.0, order, error_if_nonfinite=True)
    assert str(error.value) == str(theirs_error.value)
    assert_identical(grads_of(ours), grads)
    norm = fusedopt.clip_grad_norm_(ours, 1.0, order)
    expected = torchs.clip_grad_norm_(theirs, 1.0, order)
    assert_identical(norm, expected.to(norm.dtype))
    assert_identical(grads_of(ours), grads_of(theirs))


def test_a_nan_is_seen_wherever_it_is() -> None:
    for order in (2.0, 1.0, math.inf, -math.inf):
        for at in range(40):
            grad = torch.ones(40)
            grad[at] = math.nan
            assert fusedopt.get_total_norm([grad], order).isnan(), (order, at)


@over(LAYOUTS, "layout")
def test_layouts(layout: Layout) -> None:
    values = random(layout.shape, 1, torch.float32) * 5
    ours, theirs = Parameter(values.clone()), Parameter(values.clone())
    ours.grad, theirs.grad = layout.grad(values.clone()), values.clone()
    try:
        expected = torchs.clip_grad_norm_([Parameter(values), theirs], 1.0)
        norm = fusedopt.clip_grad_norm_([Parameter(values), ours], 1.0)
    except RuntimeError as error:  # an expanded gradient can't be scaled in place
        assert "single memory location" in str(error)
        with pytest.raises(RuntimeError, match="single memory location"):
            torchs.clip_grad_norm_([ours], 1.0)
        return
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("least", [0.5, 0.0, math.inf, math.nan, -1.0])
@over(DTYPES, "dtype")
def test_clip_grad_value(dtype: torch.dtype, least: float) -> None:
    grads = make_grads(dtype)
    grads[2][:3] = torch.tensor([math.nan, math.inf, -math.inf])
    ours, theirs = params_with(grads), params_with(grads)
    assert fusedopt.clip_grad_value_(ours, least) is None
    torchs.clip_grad_value_(theirs, least)
    assert_identical(grads_of(ours), grads_of(theirs))


def test_clip_grads_with_norm() -> None:
    for norm in (
        torch.tensor(7.0),
        torch.tensor(7.0, dtype=torch.float64),
        torch.tensor(7.0, dtype=torch.bfloat16),
        torch.tensor(0.5),
        torch.tensor(math.nan),
    ):
        ours, theirs = params_with(make_grads()), params_with(make_grads())
        assert fusedopt.clip_grads_with_norm_(iter(ours), 2, norm) is None
        torchs.clip_grads_with_norm_(theirs, 2, norm)
        assert_identical(grads_of(ours), grads_of(theirs))


def test_a_norm_with_a_dimension_is_torchs_affair() -> None:
    for clip in (fusedopt.clip_grads_with_norm_, torchs.clip_grads_with_norm_):
        with pytest.raises(RuntimeError, match="0 dim"):
            clip(params_with(make_grads()), 2, torch.tensor([7.0]))


def test_a_value_beyond_a_dtype_is_refused() -> None:
    for dtype, value in ((torch.float16, 7e4), (torch.float32, 1e39)):
        for clip in (fusedopt.clip_grad_value_, torchs.clip_grad_value_):
            with pytest.raises(RuntimeError, match="overflow"):
                clip(params_with(make_grads(dtype)), value)


def test_a_norm_beyond_float32_is_a_float64() -> None:
    """It isn't infinite, since no gradient is."""
    params = params_with([torch.full((4,), 3e38)])
    norm = fusedopt.clip_grad_norm_(params, 1.0)
    torch.testing.assert_close(
        norm, torch.tensor(2 * float(torch.tensor(3e38)), dtype=torch.float64)
    )
    torch.testing.assert_close(params[0].grad, torch.full((4,), 0.5))


_BITS = """
import json, sys, torch, fusedopt
torch.set_num_threads(int(sys.argv[1]))
out = []
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    g = torch.Generator().manual_seed(0)
    grads = [torch.randn(n, generator=g, dtype=torch.float64).to(dtype)
             for n in (1, 7, 8, 9, 4095, 4096, 4097, 300_001)]
    for order in (2.0, 1.0, float("inf"), -float("inf"), 0.0):
        out.append(float(fusedopt.get_total_norm(grads, order)).hex())
    params = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for p, grad in zip(params, grads):
        p.grad = grad.clone()
    fusedopt.clip_grad_norm_(params, 1.0)
    out += [float(p.grad.double().sum()).hex() for p in params]
print(json.dumps(out))
"""


def test_the_same_bits_everywhere() -> None:
    """On all instruction sets, and for any number of threads."""
    found = {}
    for isa in fusedopt._C.isa_detected():
        for threads in ("1", "3"):
            run = subprocess.run(
                [sys.executable, "-c", _BITS, threads],
                env={**os.environ, "FUSEDOPT_CPU_ISA": isa},
                capture_output=True,
                text=True,
                check=True,
            )
            found[isa, threads] = json.loads(run.stdout)
    first = next(iter(found.values()))
    assert all(each == first for each in found.values())
