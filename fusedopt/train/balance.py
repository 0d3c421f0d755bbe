"""Classes with few images: weights in the loss, and sampling that shows them as often as others."""

from __future__ import annotations

import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.utils.data import WeightedRandomSampler

from fusedopt.train import world


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """Returns scikit-learn's "balanced" weights, images / (classes * images of the class).

    Args:
        labels: (N,), int64, of the training images.
        classes: how many there are. One without images isn't counted, and its weight is 0.

    Returns:
        (classes,), float32. Their mean over the images is 1.
    """
    weights, present = torch.zeros(classes), labels.unique()
    balanced = compute_class_weight("balanced", classes=present.numpy(), y=labels.numpy())
    weights[present] = torch.from_numpy(balanced).float()
    return weights


def balanced_order(labels: Tensor, seed: int) -> list[int]:
    """Draws as many images as there are, with replacement, each class equally likely.

    Returns:
        Indices for this process. All processes draw the same ones, and share them as
        DistributedSampler does, each as many as the others.
    """
    each = balanced_weights(labels, int(labels.max()) + 1)[labels].tolist()
    count = -(-len(labels) // world.size()) * world.size()
    generator = torch.Generator().manual_seed(seed)
    drawn = list(WeightedRandomSampler(each, count, generator=generator))
    return drawn[world.rank() :: world.size()]


def batch_shares(
    order: Tensor, class_weights: Tensor | None, size: int, accumulate: int
) -> list[tuple[float, float]]:
    """Returns each batch's share of its optimizer step, and how many images it counts for.

    With the shares, a step's gradient is that of torch's `cross_entropy` on all the step's images
    at once, weighted or not, however they are cut into batches and among processes. With the
    counts, an epoch's mean loss is that of all its images. Without weights a batch counts for the
    images that it has.

    Args:
        order: (N,), int64, labels of this process's images of an epoch.
        class_weights: (classes,), or None for images that all weigh the same.
        size: images per batch.
        accumulate: batches per step.
    """
    weights = torch.ones(len(order)) if class_weights is None else class_weights.cpu()[order]
    batches = torch.stack([batch.sum() for batch in weights.double().split(size)])
    steps = torch.stack([step.sum() for step in batches.split(accumulate)])
    counts = batches
    if class_weights is not None:
        world.add_up(steps)
        steps /= world.size()
        counts = batches * (len(order) / steps.sum())
    shares = batches / steps.repeat_interleave(accumulate)[: len(batches)]
    return list(zip(shares.tolist(), counts.tolist(), strict=True))
