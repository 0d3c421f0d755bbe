"""What the optimizer phase costs with fusedopt and with torch, side by side on copies."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedopt.train.loop import autocast, make_optimizer, optimizer_class
from fusedopt.train.options import Options
from fusedopt.train.phase import make_ema, optimizer_phase
from fusedopt.train.recipe import parameter_groups, set_train_mode

WARM_UP = 3
ROUNDS = 30
SECONDS = 20.0  # large networks get fewer rounds
SHARE = 0.1  # of the time of training, at most


@dataclass(frozen=True)
class Cost:
    """Medians of one implementation.

    Attributes:
        step_ms: milliseconds of the optimizer phase: clipping, step, zero_grad and average.
        share: of the time of forward pass, backward pass and this phase.
        rounds: number of steps.
    """

    step_ms: float
    share: float
    rounds: int


def clock(device: torch.device) -> float:
    """Returns the time in seconds, after an accelerator has done all it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def measure(
    model: nn.Module, options: Options, images: Tensor, labels: Tensor, seconds: float = SECONDS
) -> dict[str, Cost]:
    """Trains a copy of the model with each implementation, by turns, and times the phase.

    Forward and backward pass run before each step, as in training: the optimizer finds the
    processor's caches as they leave them.

    Args:
        model: stays as it is.
        options: the optimizer and its settings; torch.optim's version gets its own default path.
        images: one batch, as the model takes it.
        labels: the images' classes.
        seconds: after which no further round begins; there are two at least.

    Returns:
        The cost with "fusedopt" and, where torch.optim has this optimizer, with "torch".
    """
    device = torch.device(options.device)
    images, labels = images.to(device, options.weights_dtype()), labels.to(device)
    runs = {}
    for impl in ("fusedopt", "torch"):
        if optimizer_class(options, impl) is None:
            continue
        twin = copy.deepcopy(model)
        set_train_mode(twin, options)
        optimizer = make_optimizer(options, impl, parameter_groups(twin, options))
        runs[impl] = twin, optimizer, make_ema(twin, options, impl)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    step_times: dict[str, list[float]] = {impl: [] for impl in runs}
    other_times: dict[str, list[float]] = {impl: [] for impl in runs}
    begin = clock(device)
    for i in range(WARM_UP + ROUNDS):
        for impl, (twin, optimizer, average) in runs.items():
            start = clock(device)
            with autocast(options):
                loss = F.cross_entropy(twin(images).float(), labels)
            loss.backward()
            before = clock(device)
            optimizer_phase(twin, optimizer, scaler, average, options, impl)
            end = clock(device)
            other_times[impl].append(before - start)
            step_times[impl].append(end - before)
        if i > 0 and clock(device) - begin > seconds:
            break
    first = min(WARM_UP, (i + 1) // 2)  # of the rounds that count
    other = median(time for times in other_times.values() for time in times[first:])
    costs = {}
    for impl, times in step_times.items():
        step = median(times[first:])
        costs[impl] = Cost(step * 1e3, step / (step + other), len(times) - first)
    return costs
