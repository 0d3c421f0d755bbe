"""The reference beside torch, whose place it takes where torch has no such optimizer; the table.

What the table of optimizers says of states and step counts is what the formulas do with them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import CASES, NAMES, OPTIMIZERS, Case, over, with_torch
from helpers import assert_same, make_params, random, step
from partners import by_reference
from reference import Array, State, to_array, update
from torch.optim import Optimizer


@over(with_torch(CASES), "case")
def test_the_reference_steps_as_torch(case: Case) -> None:
    """All kinds of state that the table can describe are among torch's."""
    torch.set_default_dtype(torch.float64)  # of single numbers too, so that no rounding differs
    both: list[Optimizer] = [by_reference(case.name)(make_params(), **case.kwargs)]
    both.append(case.make(make_params(), torch.optim))
    assert_same(*both)
    for t, present in enumerate(([0, 1, 3], [0, 1, 3], [0, 1, 2, 3], [2])):
        for optimizer in both:
            params = optimizer.param_groups[0]["params"]
            step(optimizer, t, [params[i] for i in present])
    assert_same(*both)


def updated(case: Case, **state: Any) -> tuple[Array, State]:
    """Parameter and state after two steps of the formula, the second from this state."""
    options = case.make([torch.zeros(1, requires_grad=True)]).param_groups[0]
    p, *grads = (to_array(random((9,), seed)) for seed in range(3))
    p, first = update(case.name, p, grads[0], {}, options)
    return update(case.name, p, grads[1], {**first, **state}, options)


@pytest.mark.parametrize("name", NAMES)
def test_the_table_has_the_formulas_states(name: str) -> None:
    keys = {key for case in CASES if case.name == name for key in updated(case)[1]}
    assert keys == {*OPTIMIZERS[name]["scalars"], *OPTIMIZERS[name]["states"]}


@pytest.mark.parametrize("name", NAMES)
def test_the_table_says_which_formulas_depend_on_the_count(name: str) -> None:
    """Where one doesn't, a count may be anything that can be counted up."""
    depends = False
    for case in (case for case in CASES if case.name == name and case.counts_steps):
        (p, state), (q, other) = (updated(case, step=count) for count in (4, 40))
        same = all(np.array_equal(state[key], other[key]) for key in state if key != "step")
        depends = depends or not same or not np.array_equal(p, q)
    assert OPTIMIZERS[name]["computes_with_step"] is depends
