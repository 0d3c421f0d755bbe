"""The training loop: plain PyTorch, with the swap from torch.optim in `make_optimizer`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from fusedopt.train.checkpoint import TrainingState
from fusedopt.train.cli import Options

CLASSES = {
    "sgd": "SGD",
    "adagrad": "Adagrad",
    "rmsprop": "RMSprop",
    "adadelta": "Adadelta",
    "adam": "Adam",
    "adamw": "AdamW",
}


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: means over its images, and seconds."""

    loss: float
    accuracy: float
    seconds: float
    optimizer_seconds: float


def make_optimizer(options: Options, impl: str, parameters: Iterable[Tensor]) -> Optimizer:
    """Returns the optimizer: this import is all that changes between torch.optim and fusedopt."""
    if impl == "fusedopt":
        import fusedopt as optim
    else:
        import torch.optim as optim

    optimizer_class = getattr(optim, CLASSES[options.optimizer])
    return optimizer_class(parameters, **options.optimizer_kwargs())


def clock(device: torch.device) -> float:
    """Returns the time in seconds, after an accelerator has done all it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def train_epoch(
    state: TrainingState, loader: DataLoader, augmentation: nn.Module, title: str
) -> Epoch:
    """Trains for one epoch.

    Args:
        state: the model, the optimizer and what else training changes.
        loader: the training set, shuffled by `state.generator`.
        augmentation: from the loader's batches to the model's input.
        title: what the progress bar calls this epoch.

    Returns:
        The epoch's loss and accuracy on the images as shifted, and its time.
    """
    model, optimizer = state.model, state.optimizer
    device = next(model.parameters()).device
    total_loss, correct, seen, optimizer_seconds = 0.0, 0, 0, 0.0
    model.train()
    augmentation.train()
    start = clock(device)
    bar = tqdm(loader, title, leave=False, disable=not sys.stderr.isatty())
    for images, labels in bar:
        images = augmentation(images).to(device)
        labels = labels.to(device)

        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        before = clock(device)
        optimizer.step()
        optimizer_seconds += clock(device) - before

        seen += len(labels)
        total_loss += loss.item() * len(labels)
        correct += (logits.argmax(1) == labels).sum().item()
        bar.set_postfix(
            loss=f"{total_loss / seen:.4f}", accuracy=f"{correct / seen:.1%}", refresh=False
        )
    state.scheduler.step()
    state.epoch += 1
    return Epoch(total_loss / seen, correct / seen, clock(device) - start, optimizer_seconds)


@torch.no_grad()
def evaluate(model: nn.Module, dataset: Dataset, augmentation: nn.Module) -> float:
    """Returns the share of a data set's images that the model classifies correctly."""
    device = next(model.parameters()).device
    model.eval()
    augmentation.eval()
    correct = 0
    for images, labels in DataLoader(dataset, batch_size=256):
        logits = model(augmentation(images).to(device))
        correct += (logits.argmax(1) == labels.to(device)).sum().item()
    return correct / len(dataset)
