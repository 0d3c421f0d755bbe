"""Loops that call `fusedopt.measure`, for its tests."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from cases import CLASS_CASES
from helpers import all_params, make_params, set_grads
from torch.optim import Optimizer

import fusedopt
from fusedopt import comparison

measuring = sys.modules["fusedopt.measure"]
BOTH = [
    pytest.param(case, module, id=f"{module.__name__}-{case.name}")
    for case in CLASS_CASES
    for module in (fusedopt, torch.optim)
    if module is fusedopt or case.has_fallback
]
ADAMS = [fusedopt.AdamW, torch.optim.AdamW]
CALLS = 60  # more than are needed with the fixture below


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_MOST", 4)
    monkeypatch.setattr(comparison, "ROW", 3)
    monkeypatch.setattr(measuring, "ROW", 3)


def train(optimizer: Optimizer, steps: int = CALLS, measured: bool = True, **options: Any) -> Any:
    """A loop; returns what `measure` returned at last."""
    answer = None
    for i in range(steps):
        set_grads(all_params(optimizer), i)
        if measured:
            answer = fusedopt.measure(optimizer, **options)
        optimizer.step()
        optimizer.zero_grad()
    return answer


def adamw(cls: Any = fusedopt.AdamW, **options: Any) -> Any:
    return cls(make_params(dtype=torch.float32), **options)


def notes(answer: Any) -> list[str]:
    """But for the one that depends on times: these loops are short."""
    return [note for note in answer.notes if "whole loop" not in note]


def names(answer: Any) -> list[str]:
    return [timing.name for timing in answer.timings]
