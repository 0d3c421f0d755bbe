"""The training loop: plain PyTorch, with the swap from torch.optim in `optimizer_class`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset, DistributedSampler, Subset
from tqdm import tqdm

from fusedopt.train import world
from fusedopt.train.balance import balanced_order, batch_shares
from fusedopt.train.data import make_loader
from fusedopt.train.data.splits import Part
from fusedopt.train.optimizers import CLASSES
from fusedopt.train.options import PRECISIONS, Options, UserError
from fusedopt.train.phase import optimizer_phase
from fusedopt.train.recipe import set_train_mode
from fusedopt.train.state import TrainingState
from fusedopt.train.strategy import shared_optimizer


class Figures(NamedTuple):
    """Means over a data set's images."""

    loss: float
    accuracy: float


def optimizer_class(options: Options, impl: str) -> type[Optimizer] | None:
    """Returns the class of `--optimizer` in torch.optim or fusedopt; None where there is none."""
    if impl == "fusedopt":
        import fusedopt as optim
    else:
        import torch.optim as optim

    return getattr(optim, CLASSES[options.optimizer], None)


def make_optimizer(
    options: Options,
    impl: str,
    parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
    shared: bool = False,
) -> Optimizer:
    """Returns the optimizer: the class's module is all that changes from torch.optim to fusedopt.

    Raises:
        UserError: torch.optim has no such optimizer, or the class refuses an option.
    """
    own_class = optimizer_class(options, impl)
    if own_class is None:
        raise UserError(f"--impl {impl}: torch.optim has no {CLASSES[options.optimizer]}")
    chosen = options.optimizer_kwargs()
    if impl == "fusedopt":
        chosen |= options.precision_kwargs()
        if options.clip_norm is not None and not (options.strategy == "zero" and shared):
            chosen["max_grad_norm"] = options.clip_norm  # zero: each process has a part of them
    make = (
        partial(shared_optimizer, own_class) if options.strategy == "zero" and shared else own_class
    )
    try:
        return make(parameters, **chosen)
    except ValueError as error:
        raise UserError(f"--optimizer {options.optimizer}: {error}") from error


def autocast(options: Options) -> torch.autocast:
    """Returns the context in which the forward pass runs in `--precision`."""
    device, dtype = torch.device(options.device), PRECISIONS[options.precision]
    return torch.autocast(device.type, dtype, enabled=options.precision in ("bf16", "fp16"))


def own_batch_size(options: Options) -> int:
    """Returns the images of a batch that are this process's."""
    return options.batch_size // world.size()


def epoch_order(dataset: Part, options: Options, epoch: int) -> list[int]:
    """Returns the training images' order, which seed and epoch decide, for this process's share.

    With `--sampler balanced` some come several times, and others not at all. A last batch of one
    image is left out, unless it is the only one: batch norm may have nothing to average there.
    """
    if options.sampler == "balanced":
        order = balanced_order(dataset.labels, options.seed + epoch)
    else:
        sampler = DistributedSampler(dataset, world.size(), world.rank(), seed=options.seed)
        sampler.set_epoch(epoch)
        order = list(sampler)
    size = own_batch_size(options)
    return order[:-1] if len(order) > 1 and len(order) % size == 1 < size else order


def _forward(state: TrainingState, images: Tensor) -> Tensor:
    try:
        return state.synchronized(images)
    except ValueError as error:
        if len(images) > 1:
            raise
        # Batch norm's: there is nothing to average where one image is one value.
        raise UserError(f"--batch-size: one image is too few for this network: {error}") from error


def train_epoch(
    state: TrainingState,
    dataset: Part,
    augmentation: nn.Module,
    options: Options,
    after_step: Callable[[], None],
    title: str,
) -> Figures:
    """Trains until the end of the epoch that has begun.

    Args:
        state: the model, the optimizer and what else training changes.
        dataset: the training set.
        augmentation: from a loader's batch to the model's input.
        options: of the recipe.
        after_step: called after each optimizer step, where `state` is whole and can be saved.
        title: what the progress bar calls this epoch.

    Returns:
        The epoch's loss and accuracy on the images as they were augmented.
    """
    model, optimizer, scaler = state.model, state.optimizer, state.scaler
    device = torch.device(options.device)
    order = epoch_order(dataset, options, state.epoch)
    size = own_batch_size(options)
    shares = batch_shares(dataset.labels[order], state.class_weights, size, options.accumulate)
    rest = Subset(dataset, order[state.batch * size :])
    # Its generator seeds the workers, and leaves torch's own to dropout.
    seed = torch.Generator().manual_seed(options.seed)
    loader = make_loader(rest, size, shuffle=False, workers=options.workers, generator=seed)
    set_train_mode(model, options)
    augmentation.train()
    before = time.perf_counter()
    with _progress(len(order), state.batch * size, title) as bar:
        for images, labels in loader:
            images, labels = augmentation(images.to(device)), labels.to(device)
            if state.mixing is not None:
                images, labels = state.mixing(images, labels)
            with autocast(options):
                logits = _forward(state, images.to(options.weights_dtype())).float()
                loss = F.cross_entropy(
                    logits, labels, state.class_weights, label_smoothing=options.label_smoothing
                )
            share, count = shares[state.batch]
            scaler.scale(loss * share).backward()

            state.batch += 1
            _count(state.totals, loss, count, logits, labels)
            state.watch(loss)
            _show(bar, state.totals, len(labels))
            if state.batch % options.accumulate and state.batch * size < len(order):
                continue

            with state.timer:
                optimizer_phase(model, optimizer, scaler, state.ema, options, options.impl)
            state.step += 1
            state.scheduler.after_step(state.step)
            state.seconds += time.perf_counter() - before
            before = time.perf_counter()
            after_step()
    world.add_up(state.totals)
    loss, correct, seen = state.totals.tolist()
    state.seconds += time.perf_counter() - before
    return Figures(loss / seen, correct / seen)


@torch.no_grad()
def evaluate(
    model: nn.Module, dataset: Dataset, augmentation: nn.Module, options: Options
) -> Figures:
    """Returns loss and accuracy on a data set, whose images are only normalised."""
    device = torch.device(options.device)
    seed = torch.Generator().manual_seed(options.seed)
    # Some images come twice, so that all processes have as many; they are counted once.
    sampler = DistributedSampler(dataset, world.size(), world.rank(), shuffle=False)
    left = len(range(world.rank(), len(dataset), world.size()))
    share = Subset(dataset, list(sampler))
    loader = make_loader(share, 256, shuffle=False, workers=options.workers, generator=seed)
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    world.share_buffers(model)
    model.eval()
    augmentation.eval()
    for images, labels in loader:
        images, labels = augmentation(images.to(device)), labels.to(device)
        with autocast(options):
            logits = model(images.to(options.weights_dtype()))[:left].float()
            labels = labels[:left]
            loss = F.cross_entropy(logits, labels)
        if left > 0:
            _count(totals, loss, len(labels), logits, labels)
        left -= len(labels)
    world.add_up(totals)
    loss, correct, seen = totals.tolist()
    return Figures(loss / seen, correct / seen)


def _count(totals: Tensor, loss: Tensor, count: float, logits: Tensor, labels: Tensor) -> None:
    """Adds a batch to the sums of loss, of correct answers and of images, on their device.

    Its mean loss counts for `count` images: for those that it has, or for their weight. Of mixed
    labels the one with the largest share is the answer.
    """
    labels = labels.argmax(1) if labels.ndim == 2 else labels
    totals[0] += loss.detach().double() * count
    totals[1] += (logits.argmax(1) == labels).sum()
    totals[2] += len(labels)


def _progress(total: int, done: int, title: str) -> tqdm:
    """Returns a bar with images/s and the time left; none where nobody watches."""
    quiet = True if world.rank() else None  # None: where stderr is no terminal
    total, done = total * world.size(), done * world.size()
    return tqdm(total=total, initial=done, desc=title, unit="img", leave=False, disable=quiet)


def _show(bar: tqdm, totals: Tensor, images: int) -> None:
    """Moves the bar on. The sums are read, and a GPU waited for, only when the bar is drawn."""
    if bar.update(images * world.size()):
        loss, correct, seen = totals.tolist()
        text = f"loss {loss / seen:.4f}, accuracy {correct / seen:.1%}"
        bar.set_postfix_str(text, refresh=False)
