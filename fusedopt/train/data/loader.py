"""The DataLoader, set up so that a seed decides everything."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, Dataset


def make_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    shuffle: bool,
    workers: int,
    generator: torch.Generator | None = None,
    drop_last: bool = False,
) -> DataLoader:
    """Returns a DataLoader whose order depends on the generator's state alone.

    Args:
        dataset: gives `(image, label)` for an index.
        batch_size: images per batch.
        shuffle: a new order for each epoch, drawn from `generator`.
        workers: processes that load; 0 loads in this one. The batches are the same.
        generator: gives order and the workers' seeds; its state before an epoch decides the epoch.
            Don't draw anything else from it during an epoch: workers ask ahead of time.
        drop_last: leave out a last batch that isn't full.

    Returns:
        Batches of images, (B, C, H, W), uint8, and labels, (B,), int64.
    """
    # No persistent workers: they would be seeded once, and a resumed run's again.
    return DataLoader(
        dataset,
        batch_size,
        shuffle=shuffle,
        num_workers=workers,
        generator=generator,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
    )
