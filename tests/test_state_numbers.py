"""Single numbers that a state holds beside the step count: NAdam's and ASGD's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import CLASS_CASES, OPTIMIZERS, SCALARS, Case, over
from helpers import (
    all_params,
    assert_identical,
    assert_same,
    assert_unchanged,
    contents,
    kernels,
    make_params,
    set_grads,
    step,
)
from torch.nn import Parameter

import fusedopt

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def numbers(case: Case) -> tuple[str, ...]:
    """Their keys."""
    return OPTIMIZERS[case.name]["scalars"][1:]


CASES = tuple(case for case in CLASS_CASES if numbers(case))


@over(FLOATS, "dtype")
@over(CASES, "case")
def test_numbers_of_each_dtype_as_torch(case: Case, dtype: torch.dtype) -> None:
    """Computed and rounded as torch's loop does, in the number's own dtype."""
    both = case.make(make_params()), case.make(make_params(), torch.optim)
    for optimizer in both:
        step(optimizer, 0)
        for state in optimizer.state.values():
            for key in numbers(case):
                state[key] = state[key].to(dtype)
        for t in range(1, 4):
            step(optimizer, t)
    assert kernels(both[0]) == {case.name.lower()}
    assert_same(*both)


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@over(CASES, "case")
def test_in_torchs_default_dtype(case: Case, default: torch.dtype) -> None:
    torch.set_default_dtype(default)
    try:
        both = case.make(make_params()), case.make(make_params(), torch.optim)
        for optimizer in both:
            for t in range(3):
                step(optimizer, t)
    finally:
        torch.set_default_dtype(torch.float32)
    for state in both[0].state.values():
        assert all(state[key].dtype == default for key in numbers(case))
    assert_same(*both)


@pytest.mark.parametrize("wrong", [
    torch.ones(2), torch.tensor(1), torch.tensor(1j), 1.0, None,
], ids=["two", "integer", "complex", "float", "None"])  # fmt: skip
@over(CASES, "case")
def test_a_number_that_is_none(case: Case, wrong: Any) -> None:
    params = make_params()
    optimizer = case.make(params)
    step(optimizer, 0)
    key = numbers(case)[-1]
    optimizer.state[params[1]][key] = copy.deepcopy(wrong)
    set_grads(params, 1)
    before = contents(optimizer)
    with pytest.raises((RuntimeError, TypeError), match=rf"'params'\]\[1\].*{key}"):
        optimizer.step()
    assert_unchanged(optimizer, before)


@over(CASES, "case")
def test_a_missing_number(case: Case) -> None:
    params = make_params()
    optimizer = case.make(params)
    step(optimizer, 0)
    key = numbers(case)[0]
    del optimizer.state[params[1]][key]
    set_grads(params, 1)
    with pytest.raises(KeyError, match=rf"'params'\]\[1\].*'{key}'"):
        optimizer.step()


@over(CASES, "case")
def test_each_step_counts_their_versions(case: Case) -> None:
    params = make_params()
    optimizer = case.make(params)
    step(optimizer, 0)
    for key in numbers(case):
        tensor = optimizer.state[params[0]][key]
        before = tensor._version
        step(optimizer, 1)
        assert optimizer.state[params[0]][key] is tensor
        assert tensor._version == before + 1


@over(CLASS_CASES, "case")
def test_versions_of_single_numbers_are_torchs(case: Case) -> None:
    both = case.make(make_params()), case.make(make_params(), torch.optim)
    versions = []
    for optimizer in both:
        step(optimizer, 0)
        step(optimizer, 1)
        state = optimizer.state.get(all_params(optimizer)[0], {})
        versions.append({key: v._version for key, v in state.items() if key in SCALARS})
    assert versions[0] == versions[1]


@pytest.mark.parametrize("options", [
    {"alpha": torch.inf}, {"t0": -torch.inf},
    {"lambd": torch.inf}, {"alpha": 0.0, "lambd": -3.0},
], ids=str)  # fmt: skip
def test_odd_options_of_asgd(options: dict[str, float]) -> None:
    both = [module.ASGD(make_params(), **options) for module in (fusedopt, torch.optim)]
    for optimizer in both:
        for t in range(3):
            step(optimizer, t)
    assert_same(*both)


@over(CASES, "case")
def test_one_number_for_two_parameters(case: Case) -> None:
    """torch's loop changes it twice in a step; so torch's own step takes the two."""
    shapes = [(3,), (2,)]
    both = case.make(make_params(shapes)), case.make(make_params(shapes), torch.optim)
    for optimizer in both:
        step(optimizer, 0)
        first, second = (optimizer.state[p] for p in all_params(optimizer))
        for key in numbers(case):
            second[key] = first[key]
        step(optimizer, 1)
        step(optimizer, 2)
    assert kernels(both[0]) == {"torch"}
    assert_same(*both)


@over([torch.float64, torch.bfloat16], "dtype")
@over(CASES, "case")
def test_loading_keeps_them(case: Case, dtype: torch.dtype) -> None:
    """Whatever the hooks before make of the checkpoint."""
    saved = case.make(make_params(dtype=dtype))
    step(saved, 0)
    step(saved, 1)
    checkpoint = copy.deepcopy(saved.state_dict())
    loaded = case.make([Parameter(p.detach().clone()) for p in all_params(saved)])

    def halve(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        given = copy.deepcopy(given)
        for state in given["state"].values():
            state[numbers(case)[0]] /= 2
        return given

    hook = loaded.register_load_state_dict_pre_hook(halve)
    loaded.load_state_dict(checkpoint)
    hook.remove()
    assert len(loaded._optimizer_load_state_dict_pre_hooks) == 0
    for p, q in zip(all_params(loaded), all_params(saved), strict=True):
        for key in numbers(case):
            found, expected = loaded.state[p][key], saved.state[q][key]
            assert found.dtype == torch.float32
            assert found == (expected / 2 if key == numbers(case)[0] else expected)
    assert_identical(checkpoint, saved.state_dict())


@over(CASES, "case")
def test_loading_numbers_of_other_dtypes(case: Case) -> None:
    """Integers as torch; no less than float32; and what needs no other dtype isn't copied."""
    saved = case.make(make_params(dtype=torch.float32))
    step(saved, 0)
    checkpoint = saved.state_dict()
    for key in numbers(case):
        checkpoint["state"][0][key] = torch.tensor(1)
        checkpoint["state"][1][key] = checkpoint["state"][1][key].bfloat16()
    loaded = case.make([Parameter(p.detach().clone()) for p in all_params(saved)])
    loaded.load_state_dict(checkpoint)
    states = [loaded.state[p] for p in all_params(loaded)]
    for key in numbers(case):
        assert all(state[key].dtype == torch.float32 for state in states)
        assert states[2][key] is checkpoint["state"][2][key]
    step(loaded, 1)


@over(CASES, "case")
def test_default_dtype_of_16_bits_as_torch(case: Case) -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        both = case.make(make_params()), case.make(make_params(), torch.optim)
        for optimizer in both:
            for t in range(4):
                step(optimizer, t)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(*both)
