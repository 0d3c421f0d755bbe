"""The digits of scikit-learn as tensors: loading, splitting, shifting."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import TensorDataset

NUM_CLASSES = 10
IN_CHANNELS = 1
IMAGE_SIZE = 16  # the scans have 8x8 pixels; LeNet's two 5x5 convolutions need 16x16
MAX_SHIFT = 2  # of 16 pixels: one pixel of the scan
BACKGROUND = -1.0


class Split(NamedTuple):
    """Indices of the scans for training, for validation and for the one test at the end."""

    train: list[int]
    validation: list[int]
    test: list[int]


def split_indices(labels: list[int], seed: int) -> Split:
    """Splits 70 : 10 : 20, each class in the same proportion, and no scan in two of them.

    Args:
        labels: the class of each scan.
        seed: the same seed gives the same split.

    Returns:
        Three disjoint lists of indices that together cover all the scans.
    """
    rest, test = train_test_split(
        range(len(labels)), test_size=0.2, stratify=labels, random_state=seed
    )
    train, validation = train_test_split(
        rest, test_size=0.125, stratify=[labels[i] for i in rest], random_state=seed
    )
    return Split(train, validation, test)


def load_data(seed: int) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Returns scikit-learn's 1,797 scans of handwritten digits, which come with the package.

    Args:
        seed: decides the split.

    Returns:
        Training, validation and test set: images (1, 16, 16) in [-1, 1], and labels.
    """
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1  # from 0..16
    images = F.interpolate(images, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    labels = torch.tensor(digits.target)
    train, validation, test = (
        TensorDataset(images[part], labels[part])
        for part in split_indices(digits.target.tolist(), seed)
    )
    return train, validation, test


def random_shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moves each image by up to `MAX_SHIFT` pixels each way; what comes in is background."""
    batch, _, height, width = images.shape
    padded = F.pad(images, (MAX_SHIFT,) * 4, value=BACKGROUND)
    offsets = torch.randint(2 * MAX_SHIFT + 1, (2, batch, 1), generator=generator)
    rows = (offsets[0] + torch.arange(height)).unsqueeze(2)
    columns = (offsets[1] + torch.arange(width)).unsqueeze(1)
    image = torch.arange(batch).view(-1, 1, 1)
    return padded[image, :, rows, columns].permute(0, 3, 1, 2).contiguous()
