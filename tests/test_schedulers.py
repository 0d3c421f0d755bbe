"""Every learning rate scheduler of torch's, and its weight averaging, around our optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CLASS_CASES, Case, over
from helpers import Make, make_params, step, twins
from torch.optim import Optimizer, lr_scheduler

import fusedopt

_SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.8),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.5, total_iters=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.7),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    # CyclicLR and OneCycleLR also change momentum or beta1 at every step.
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2, cycle_momentum=_cycles(o)),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(
        o, 0.1, total_steps=8, cycle_momentum=_cycles(o)
    ),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 5, 2.0),
}


def _cycles(optimizer: Optimizer) -> bool:
    return optimizer.defaults.get("momentum", 0) > 0 or "betas" in optimizer.defaults


def test_every_scheduler_is_in_the_table() -> None:
    assert set(_SCHEDULERS) | {"LRScheduler"} >= set(lr_scheduler.__all__)


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("name", _SCHEDULERS)
@over(CLASS_CASES, "case")
def test_scheduler(case: Case, name: str, tensor_lr: bool) -> None:
    def scenario(make: Make) -> Optimizer:
        lr = torch.tensor(0.1, dtype=torch.float64) if tensor_lr else 0.1
        optimizer = make(make_params(), lr=lr)
        scheduler = _SCHEDULERS[name](optimizer)
        for t in range(6):
            step(optimizer, t)
            scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
        assert math.isfinite(float(optimizer.param_groups[0]["lr"]))
        return optimizer

    twins(case, scenario)


@over(CLASS_CASES, "case")
def test_weight_averaging(case: Case) -> None:
    """torch.optim.swa_utils beside our classes."""

    def scenario(make: Make) -> Optimizer:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3, dtype=torch.float64)
        averaged = fusedopt.swa_utils.AveragedModel(model)
        optimizer = make(model.parameters())
        scheduler = fusedopt.swa_utils.SWALR(optimizer, swa_lr=0.05, anneal_epochs=2)
        for t in range(4):
            step(optimizer, t)
            averaged.update_parameters(model)
            scheduler.step()
        for p, average in zip(model.parameters(), averaged.parameters(), strict=True):
            p.data.copy_(average)
        return optimizer

    twins(case, scenario)
