"""What a step costs with fusedopt and with torch.optim, measured side by side on copies."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from statistics import median

import torch.nn.functional as F
from torch import Tensor, nn

from fusedopt.train.cli import Options
from fusedopt.train.loop import clock, make_optimizer

WARM_UP = 3
ROUNDS = 30


@dataclass(frozen=True)
class Cost:
    """Medians of one implementation.

    Attributes:
        step_ms: milliseconds of `optimizer.step()`.
        share: of the time of forward pass, backward pass and step.
    """

    step_ms: float
    share: float


def compare(model: nn.Module, options: Options, images: Tensor, labels: Tensor) -> dict[str, Cost]:
    """Trains a copy of the model with each implementation, by turns, and times the steps.

    Forward and backward pass run before each step, as in training: the optimizer finds the
    processor's caches as they leave them.

    Args:
        model: stays as it is.
        options: the optimizer and its settings; torch.optim's version gets its own default path.
        images: one batch.
        labels: the images' classes.

    Returns:
        The cost with "fusedopt" and with "torch".
    """
    device = next(model.parameters()).device
    images, labels = images.to(device), labels.to(device)
    runs = {}
    for impl in ("fusedopt", "torch"):
        twin = copy.deepcopy(model).train()
        runs[impl] = twin, make_optimizer(options, impl, twin.parameters())
    step_times: dict[str, list[float]] = {impl: [] for impl in runs}
    other_times: list[float] = []
    for i in range(WARM_UP + ROUNDS):
        for impl, (twin, optimizer) in runs.items():
            start = clock(device)
            optimizer.zero_grad()
            F.cross_entropy(twin(images), labels).backward()
            before = clock(device)
            optimizer.step()
            end = clock(device)
            if i >= WARM_UP:
                other_times.append(before - start)
                step_times[impl].append(end - before)
    other = median(other_times)
    steps = {impl: median(times) for impl, times in step_times.items()}
    return {impl: Cost(step * 1e3, step / (step + other)) for impl, step in steps.items()}
