"""Parameters listed twice or sharing memory, and those of inference mode."""

from __future__ import annotations

import pytest
import torch
from cases import CLASS_CASES, MAIN_CASES, Case, over, with_torch
from helpers import (
    Make,
    assert_unchanged,
    contents,
    kernels,
    make_params,
    random,
    step,
    twins,
)
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt


@pytest.mark.filterwarnings("ignore:.*duplicate parameters")
@over(with_torch(MAIN_CASES), "case")
def test_parameter_listed_twice(case: Case) -> None:
    def scenario(make: Make) -> Optimizer:
        a, b = make_params([(4,), (5,)])
        optimizer = make([a, b, a])
        for t in range(3):
            step(optimizer, t)
        return optimizer

    ours, _ = twins(case, scenario)
    assert "torch" in kernels(ours)


@pytest.mark.parametrize("groups", [1, 2])
@over(with_torch(MAIN_CASES), "case")
def test_parameters_that_share_memory(case: Case, groups: int) -> None:
    """One after the other, as torch's loop does it."""

    def scenario(make: Make) -> Optimizer:
        memory = random((20,), 0)
        params = [Parameter(memory[:12]), Parameter(memory[8:]), Parameter(memory[3:9:2])]
        lists = [params] if groups == 1 else [params[:1], params[1:]]
        optimizer = make([{"params": each} for each in lists])
        for t in range(3):
            step(optimizer, t)
        return optimizer

    twins(case, scenario)


@over(with_torch(MAIN_CASES), "case")
def test_interleaved_parameters_are_separate(case: Case) -> None:
    """Even and odd columns of a matrix: the same range of memory, no common element."""

    def scenario(make: Make) -> Optimizer:
        memory = random((6, 8), 0)
        optimizer = make([Parameter(memory[:, ::2]), Parameter(memory[:, 1::2])])
        for t in range(3):
            step(optimizer, t)
        return optimizer

    twins(case, scenario)


@over(CLASS_CASES, "case")
def test_memory_that_is_shared_until_it_is_written(case: Case) -> None:
    """Two parameters in one lazily copied memory: both are stepped in the copy."""

    def scenario(make: Make) -> Optimizer:
        memory = random((9,), 0)
        before = memory.clone()
        lazy = torch._lazy_clone(memory)
        optimizer = make([Parameter(lazy[:4]), Parameter(lazy[4:])])
        for t in range(3):
            if t == 2:
                lazy = torch._lazy_clone(lazy)  # whose memory was the parameters' own
                for entries in optimizer.state.values():
                    for key in entries:
                        if isinstance(entries[key], torch.Tensor):
                            entries[key] = torch._lazy_clone(entries[key])
            step(optimizer, t)
        assert torch.equal(memory, before)
        return optimizer

    twins(case, scenario)


@pytest.mark.parametrize("step_first", [False, True])
def test_a_refused_step_leaves_lazily_copied_memory_as_it_was(step_first: bool) -> None:
    memory = torch.ones(4)
    params = [Parameter(torch._lazy_clone(memory)), Parameter(torch.ones(4))]
    optimizer = fusedopt.AdamW(params)
    if step_first:
        step(optimizer, 0)
    for p in params:
        p.grad = torch.ones(4)
    optimizer.state[params[1]] = {"step": "none"}
    before = contents(optimizer)
    with pytest.raises(TypeError, match="step"):
        optimizer.step()
    assert_unchanged(optimizer, before)
    assert torch.equal(memory, torch.ones(4))


@over(CLASS_CASES, "case")
def test_inference_mode(case: Case) -> None:
    """Parameters made in inference mode have no version counter; they can be stepped there."""

    def scenario(make: Make) -> Optimizer:
        with torch.inference_mode():
            params = make_params()
            assert params[0].is_inference()
            optimizer = make(params)
            for t in range(3):
                step(optimizer, t)
        return optimizer

    twins(case, scenario)


@over(CLASS_CASES, "case")
def test_inference_tensors_outside_inference_mode(case: Case) -> None:
    """Refused, as by torch: autograd couldn't notice the change."""
    with torch.inference_mode():
        param = Parameter(random((4,), 0))
    for module in (torch.optim, fusedopt):
        optimizer = case.make([param], module)
        with torch.inference_mode():
            param.grad = random((4,), 1)
        before = contents(optimizer)
        with pytest.raises(RuntimeError, match="[Ii]nference"):
            optimizer.step()
    assert_unchanged(optimizer, before)
