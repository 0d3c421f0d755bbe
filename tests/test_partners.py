"""The class that steps by the reference ends where torch's ends, so it may judge in its place."""

from __future__ import annotations

import torch
from cases import CASES, Case, over, with_torch
from helpers import assert_same, make_params, step
from partners import by_reference
from torch.optim import Optimizer


@over(with_torch(CASES), "case")
def test_the_reference_steps_as_torch(case: Case) -> None:
    """All kinds of state that the table of optimizers can describe are among torch's."""
    torch.set_default_dtype(torch.float64)  # of single numbers too, so that no rounding differs
    both: list[Optimizer] = [case.make(make_params(), torch.optim)]
    both.append(by_reference(case.name)(make_params(), **case.kwargs))
    assert_same(*reversed(both))
    for t, present in enumerate(([0, 1, 3], [0, 1, 3], [0, 1, 2, 3], [2])):
        for optimizer in both:
            params = optimizer.param_groups[0]["params"]
            step(optimizer, t, [params[i] for i in present])
    assert_same(*reversed(both))
