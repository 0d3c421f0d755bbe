"""RAdam divides by the root of the variance from about the sixth step on: both sides of that.

The bits of that phase are compared in tests/cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import make_params, set_grads
from reference import Reference, from_array
from torch import Tensor

import fusedopt

STEPS = 12


def steps_of(make: Callable[[Any], Any]) -> tuple[list[Tensor], Any]:
    params = make_params()
    optimizer = make(params)
    for t in range(STEPS):
        set_grads(params, t)
        optimizer.step()
    return [p.detach() for p in params], optimizer


@pytest.mark.parametrize("options", [
    {}, {"betas": (0.9, 0.99)}, {"betas": (0.9, 0.82)}, {"betas": (0.9, 0.5)},
    {"weight_decay": 0.1, "decoupled_weight_decay": True}, {"weight_decay": 0.1, "maximize": True},
])  # fmt: skip
def test_both_sides_of_the_rectification(options: dict[str, Any]) -> None:
    ours, optimizer = steps_of(lambda ps: fusedopt.RAdam(ps, lr=0.1, **options))
    theirs, _ = steps_of(lambda ps: torch.optim.RAdam(ps, lr=0.1, **options))
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)
    params = make_params()
    truth = Reference("RAdam", optimizer.param_groups[0], params)
    for t in range(STEPS):
        set_grads(params, t)
        truth.step([p.grad for p in params])
    expected = [from_array(p, torch.float64) for p in truth.params]
    torch.testing.assert_close(ours, expected, rtol=1e-13, atol=1e-14)
