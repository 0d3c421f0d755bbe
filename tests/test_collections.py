"""Garbage collections in the midst of a call: finalisers that replace what the call is reading.

Up to Python 3.11 whatever makes a new object may collect, and even asking a tensor for its dict
makes one. A call sees everything as it was before a finaliser ran, or everything as after.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from cases import CLASS_CASES, Case, case, over
from helpers import assert_identical, contents, make_params, set_grads, step
from torch import nn

import fusedopt
from fusedopt import swa_utils

SHAPES = [(4,), (2, 3), (), (5,)] * 5


class Garbage:
    """A cycle that acts when it is collected, and leaves another like it."""

    acting = False

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act
        self.cycle = self

    def __del__(self) -> None:
        if gc.get_threshold()[0] != 1:
            return
        if not Garbage.acting:
            Garbage.acting = True
            self.act()
            Garbage.acting = False
        Garbage(self.act)


@contextmanager
def collecting(act: Callable[[], object]) -> Iterator[None]:
    """Collects garbage, and acts, as often as Python can."""
    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        Garbage(act)
        yield
    finally:
        gc.set_threshold(*before)
        gc.collect()


@over([c for c in (case("SGD-momentum"), *CLASS_CASES) if c.keeps_state], "case")
def test_state_replaced_while_a_step_looks(case: Case) -> None:
    """What is replaced is kept, so that a step that goes on with it shows as a wrong number."""
    params, others = make_params(SHAPES), make_params(SHAPES)
    optimizer, expected = case.make(params), case.make(others)
    kept: list[object] = []

    def replace() -> None:
        for p, state in list(optimizer.state.items()):
            kept.append(state)
            optimizer.state[p] = {
                k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()
            }

    for t in range(3):
        step(expected, t)
        set_grads(params, t)
        replace()
        with collecting(replace) if t else nullcontext():
            optimizer.step()
        assert_identical(contents(optimizer), contents(expected), f"step {t}")


class Model(nn.Module):
    """Layers between modules whose dicts Python makes only when they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Linear(2, 2), nn.Identity()) for _ in range(20))
        )


def test_parameters_replaced_while_an_average_walks() -> None:
    """All values that an average takes are of one moment."""
    model = Model()
    averaged = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.0))
    value = 0.0
    kept: list[object] = []

    def replace() -> None:
        nonlocal value
        value += 1
        for layer in model.layers:
            kept.extend(layer)
            layer[0] = nn.Linear(2, 2)
            layer[0].weight.data.fill_(value)
            layer[1] = nn.Identity()

    for _ in range(3):
        replace()
        with collecting(replace):
            averaged.update_parameters(model)
        weights = [layer[0].weight.detach() for layer in averaged.module.layers]
        assert len({w.unique().item() for w in weights}) == 1


def test_a_list_replaced_while_it_is_copied() -> None:
    """Too long a list, so that Python has no such tuple in store, and makes one."""
    optimizer = fusedopt.Rprop(make_params())
    step(optimizer, 0)
    group = optimizer.param_groups[0]

    def replace() -> None:
        group["etas"] = [0.5, 1.2]
        group["step_sizes"] = [1e-6, 50.0] * 500

    plan = optimizer._fusedopt_Rprop
    for _ in range(5):
        replace()
        gc.collect()
        with collecting(replace), pytest.raises(TypeError, match="step_sizes'. must be a pair"):
            plan.step(optimizer, (None, None), None, None, None)
