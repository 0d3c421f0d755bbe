"""What programs with a network and data have in common: batches, the loop, the final figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from benchmarks.programs.program import Phase

Loss = Callable[[Tensor, Tensor], Tensor]


def shuffled(inputs: Tensor, targets: Tensor, size: int, steps: int, seed: int) -> DataLoader:
    """So many batches, in random order, each example once before any comes again."""
    data = TensorDataset(inputs, targets)
    generator = torch.Generator().manual_seed(seed)
    sampler = RandomSampler(data, num_samples=size * steps, generator=generator)
    return DataLoader(data, size, sampler=sampler)


def train(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Loss,
    phase: Phase,
    scheduler: LRScheduler | None = None,
) -> None:
    """The usual loop."""
    model.train()
    for inputs, targets in batches:
        loss(model(inputs), targets).backward()
        phase.end_step()
        if scheduler is not None:
            scheduler.step()


@torch.no_grad()
def evaluate(model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss) -> float:
    """The mean loss of a network that has been trained."""
    model.eval()
    return float(loss(model(inputs), targets))


def accuracy(scores: Tensor, labels: Tensor) -> Tensor:
    """The share of examples whose class has the highest score, in percent."""
    return 100 * (scores.argmax(dim=-1) == labels).double().mean()
