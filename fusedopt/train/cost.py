"""What the optimizer phase costs with fusedopt and with torch, side by side on copies."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedopt.train.loop import autocast, make_optimizer, optimizer_class
from fusedopt.train.options import Options
from fusedopt.train.phase import make_ema, optimizer_phase
from fusedopt.train.recipe import parameter_groups, set_train_mode
from fusedopt.turns import Turns, median

WARM_UP = 3
ROUNDS = 30
LEAST = 2
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
        seconds: after which no further round begins; there are two at least, after three that don't
            count.

    Returns:
        The cost with "fusedopt" and, where torch.optim has this optimizer, with "torch".
    """
    device = torch.device(options.device)
    images, labels = images.to(device, options.weights_dtype()), labels.to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    parts = {}
    for impl in ("fusedopt", "torch"):
        if optimizer_class(options, impl) is None:
            continue
        twin = copy.deepcopy(model)
        set_train_mode(twin, options)
        optimizer = make_optimizer(options, impl, parameter_groups(twin, options))
        average = make_ema(twin, options, impl)
        parts[impl] = (
            partial(_make_gradients, twin, options, images, labels),
            partial(optimizer_phase, twin, optimizer, scaler, average, options, impl),
        )
    turns = Turns(parts, [device], WARM_UP)
    while not turns.are_enough(ROUNDS, LEAST, seconds):
        turns.turn()
    other = median(chain.from_iterable(turns.before.values()))
    costs = {}
    for impl, times in turns.seconds.items():
        step = median(times)
        costs[impl] = Cost(step * 1e3, step / (step + other), len(times))
    return costs


def _make_gradients(model: nn.Module, options: Options, images: Tensor, labels: Tensor) -> None:
    """Runs forward and backward pass."""
    with autocast(options):
        loss = F.cross_entropy(model(images).float(), labels)
    loss.backward()
