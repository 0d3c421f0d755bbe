"""Memory stays as it is over many steps, whichever way they take."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import CLASS_CASES, OPTIMIZERS, Case, over
from helpers import make_params, set_grads
from torch.nn import Parameter
from torch.optim import Optimizer

STEPS = 20_000
STATM = Path("/proc/self/statm")
PAGE = 4096
Disturb = Callable[[Optimizer, list[Parameter], int], None]


def resident() -> int:
    """Bytes of this process that are in memory."""
    gc.collect()
    return int(STATM.read_text().split()[1]) * PAGE


def nothing(optimizer: Optimizer, params: list[Parameter], i: int) -> None:
    """The same objects at each step."""


def new_gradients(optimizer: Optimizer, params: list[Parameter], i: int) -> None:
    """As after each backward pass; every tenth time one is missing."""
    for p in params:
        p.grad = torch.ones_like(p)
    if i % 10 == 0:
        params[i % len(params)].grad = None


def scaled(optimizer: Optimizer, params: list[Parameter], i: int) -> None:
    """Unscaled gradients are made separate first."""
    params[0].grad = torch.ones(()).expand(params[0].shape)
    optimizer.grad_scale = torch.ones(())  # type: ignore[attr-defined]
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]


def lost_state(optimizer: Optimizer, params: list[Parameter], i: int) -> None:
    """State is made anew."""
    optimizer.state.pop(params[i % len(params)], None)


def by_torch(optimizer: Optimizer, params: list[Parameter], i: int) -> None:
    """Memory that the step writes is read as a gradient: torch's step, beside ours."""
    seldom = i % 50 == 0  # it takes as long as many of ours
    params[0].grad = params[1].detach().flatten()[:4] if seldom else torch.ones_like(params[0])


def refused(optimizer: Optimizer, params: list[Parameter], i: int) -> None:
    """A step that raises."""
    if i % 20:
        return
    group, option = optimizer.param_groups[0], OPTIMIZERS[type(optimizer).__name__]["options"][0]
    before = group[option]
    group[option] = "much"
    with pytest.raises(TypeError):
        optimizer.step()
    group[option] = before


@pytest.mark.skipif(not STATM.exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("disturb", [nothing, new_gradients, scaled, lost_state, by_torch, refused])
@over(CLASS_CASES, "case")
def test_memory_over_many_steps(case: Case, disturb: Disturb) -> None:
    if disturb is by_torch and not case.has_fallback:
        pytest.skip("torch has none")
    params = make_params([(4,), (3, 2), ()], torch.float32)
    optimizer = case.make(params)
    set_grads(params, 0)

    def run(steps: int) -> None:
        for i in range(steps):
            disturb(optimizer, params, i)
            optimizer.step()

    run(STEPS // 10)
    before = resident()
    run(STEPS)
    assert resident() - before < 1 << 20  # 52 bytes per step
