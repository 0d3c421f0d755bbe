"""Strides, offsets and alignment change nothing: the same bits as with contiguous tensors."""

from __future__ import annotations

import os

import pytest
import torch
from cases import (
    DTYPES,
    LAYOUTS,
    MAIN_CASES,
    SCALARS,
    Case,
    Layout,
    case,
    dense,
    over,
    shuffled,
    sliced,
    transposed,
)
from helpers import assert_identical, random
from torch import Tensor
from torch.nn import Parameter

STEPS = 3


def values_and_grads(layout: Layout, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """A parameter's values, and its gradients in the layout."""
    grads = [layout.grad(random(layout.shape, t + 1, dtype)) for t in range(STEPS)]
    return random(layout.shape, 0, dtype), grads


@over(DTYPES, "dtype")
@over(LAYOUTS, "layout")
@over(MAIN_CASES, "case")
def test_same_bits_as_contiguous(case: Case, layout: Layout, dtype: torch.dtype) -> None:
    values, grads = values_and_grads(layout, dtype)
    laid_out, plain = Parameter(layout.param(values)), Parameter(dense(values))
    assert laid_out.stride() == layout.param(values).stride()
    ours, contiguous = case.make([laid_out]), case.make([plain])
    for grad in grads:
        before = grad.clone()
        laid_out.grad, plain.grad = grad, dense(grad)
        ours.step()
        contiguous.step()
        assert laid_out.grad is grad
        assert_identical(grad, before, "gradient")
    assert_identical(laid_out.detach(), plain.detach(), "parameter")
    assert_identical(dict(ours.state.get(laid_out, {})), dict(contiguous.state.get(plain, {})))


@over(LAYOUTS, "layout")
@over([c for c in MAIN_CASES if c.counts_steps or (c.keeps_state and not c.has_fallback)], "case")
def test_state_has_torchs_strides(case: Case, layout: Layout) -> None:
    """torch makes state with `preserve_format`, and checkpoints and memory use depend on it."""
    values, grads = values_and_grads(layout, torch.float32)
    param = Parameter(layout.param(values))
    optimizer = case.make([param])
    param.grad = grads[0]
    optimizer.step()
    expected = torch.zeros_like(param, memory_format=torch.preserve_format)
    for key, state in optimizer.state[param].items():
        if key not in SCALARS:
            assert state.stride() == expected.stride(), key
            assert not state.requires_grad


@over(DTYPES, "dtype")
@over(MAIN_CASES, "case")
def test_memory_around_a_view_is_not_touched(case: Case, dtype: torch.dtype) -> None:
    """torch's fused step writes between the elements of a strided view."""
    around = torch.full((40, 90), 7.0, dtype=dtype)
    view = around[3:30, 5:80:3]
    view.copy_(random(view.shape, 0, dtype))
    start = view.clone()
    grad_around = torch.full((30, 55), 7.0, dtype=dtype)
    grad = grad_around[1:28, 4:54:2].copy_(random(view.shape, 1, dtype))
    param = Parameter(view)
    optimizer = case.make([param])
    param.grad = grad
    for _ in range(2):
        optimizer.step()
    inside = torch.zeros_like(around, dtype=torch.bool)
    inside[3:30, 5:80:3] = True
    assert (around[~inside] == 7).all()
    assert not torch.equal(view, start)
    assert torch.equal(grad, random(view.shape, 1, dtype))


@over(MAIN_CASES, "case")
def test_state_laid_out_unlike_its_parameter(case: Case) -> None:
    """A checkpoint or a user may bring state of any strides: index for index it belongs."""
    values = random((33, 37), 0)
    results = []
    for layout in (dense, sliced):
        param = Parameter(dense(values))
        optimizer = case.make([param])
        for t in range(3):
            param.grad = random(values.shape, t + 1)
            optimizer.step()
            for key, state in optimizer.state.get(param, {}).items():
                if key not in SCALARS:
                    optimizer.state[param][key] = layout(state)
        results.append([param.detach(), dict(optimizer.state.get(param, {}))])
    assert_identical(results[1], results[0])


@over(MAIN_CASES, "case")
def test_strides_that_change_between_steps(case: Case) -> None:
    """`model.to(memory_format=...)` in the middle of a run, and a gradient of another layout."""
    results = []
    for formats in (
        [torch.contiguous_format] * 4,
        [torch.channels_last, torch.contiguous_format] * 2,
    ):
        param = Parameter(random((4, 3, 5, 6), 0))
        optimizer = case.make([param])
        for t, memory_format in enumerate(formats):
            param.data = param.data.contiguous(memory_format=memory_format)
            param.grad = random(param.shape, t + 1).contiguous(memory_format=formats[-1 - t])
            optimizer.step()
        results.append(param.detach().contiguous())
    assert_identical(results[1], results[0])


def test_many_dimensions() -> None:
    """No limit on dimensions below torch's own 64."""
    values = random((1, 2) * 12, 0)
    param = Parameter(values.permute(*reversed(range(24))).clone())
    plain = Parameter(param.detach().clone().contiguous())
    strided = Parameter(values.clone().permute(*reversed(range(24))))
    for p in (param, plain, strided):
        p.grad = random(values.shape[::-1], 1)
        case("AdamW-all").make([p]).step()
    assert_identical(strided.detach().contiguous(), plain.detach())
    assert_identical(param.detach().contiguous(), plain.detach())


def test_all_layouts_and_dtypes_in_one_optimizer() -> None:
    """One step over everything at once gives the same bits as one optimizer per tensor."""
    for c in MAIN_CASES:
        together, alone = [], []
        for dtype in DTYPES:
            for layout in LAYOUTS:
                values, grads = values_and_grads(layout, dtype)
                for params in (together, alone):
                    params.append(Parameter(layout.param(values)))
                    params[-1].grad = grads[0]
        c.make(together).step()
        for p in alone:
            c.make([p]).step()
        assert_identical([p.detach() for p in together], [p.detach() for p in alone], c.id)


@pytest.mark.skipif("FUSEDOPT_TEST_LARGE" not in os.environ, reason="takes 5 GiB and a minute")
def test_more_than_2_31_elements() -> None:
    """Sizes and offsets are 64 bits wide, with strides and without."""
    size = 2**31 + 37
    values = torch.ones(size, dtype=torch.bfloat16)
    for param in (Parameter(values), Parameter(values[:-3].view(-1, 3).t())):
        param.data.fill_(1.0)
        param.grad = torch.full((1,) * param.dim(), 2.0, dtype=torch.bfloat16).expand(param.shape)
        case("SGD-default").make([param], lr=0.25).step()
        low, high = param.detach().aminmax()
        assert low == high == 0.5


@pytest.mark.parametrize("shape", [(3,) * 11, (67, 341, 7)], ids=repr)
def test_short_dimensions_shared_among_threads(shape: tuple[int, ...]) -> None:
    """A thread's part begins anywhere among them."""
    values, grad = random(shape, 0), random(shape, 1)
    param, plain = Parameter(dense(values)), Parameter(dense(values))
    param.grad, plain.grad = (shuffled if len(shape) > 3 else transposed)(grad), dense(grad)
    for p in (param, plain):
        case("AdamW-all").make([p]).step()
    assert_identical(param.detach(), plain.detach())
