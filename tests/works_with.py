"""What the tests of other libraries share: both modules, and how two runs are compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.nn import Module
from torch.optim import Optimizer

import fusedopt

HOW = "pip install 'fusedopt[works-with]'"
BOTH = (fusedopt, torch.optim)
Run = tuple[Module, Optimizer]
LIMIT = 0.1  # of the gradients' norm, which mostly is greater


def assert_close(ours: Any, theirs: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def outcome(model: Module, optimizer: Optimizer) -> dict[str, Any]:
    """What two runs are compared by."""
    loaded = optimizer.state_dict()
    rates = [float(group["lr"]) for group in loaded["param_groups"]]
    return {"weights": list(model.parameters()), "state": loaded["state"], "lr": rates}


def continued_both_ways(
    begin: Callable[[ModuleType], Any],
    save: Callable[[Any, Path], None],
    resume: Callable[[ModuleType, Path], Any],
    result: Callable[[Any], Any],
    folder: Path,
) -> None:
    """A checkpoint of either class, continued by either, ends where torch.optim's alone does."""
    ours, theirs = folder / "ours", folder / "theirs"
    save(begin(fusedopt), ours)
    save(begin(torch.optim), theirs)
    expected = result(resume(torch.optim, theirs))
    assert_close(result(resume(fusedopt, theirs)), expected)
    assert_close(result(resume(torch.optim, ours)), expected)


def save(run: Run, path: Path) -> None:
    torch.save([part.state_dict() for part in run], path)


def load(run: Run, path: Path) -> None:
    for part, state in zip(run, torch.load(path), strict=True):
        part.load_state_dict(state)
