"""scikit-learn's scans of handwritten digits, which come with the package."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from fusedopt.train.data.images import ImageSet, resize

COUNT = 1797
IMAGE_SIZE = 16  # the scans have 8x8 pixels; LeNet's two 5x5 convolutions need 16x16


def load(image_size: int | None) -> tuple[ImageSet, tuple[str, ...]]:
    """Returns the 1,797 scans, enlarged to 16x16 pixels unless `image_size` says otherwise."""
    digits = load_digits()
    images = (torch.tensor(digits.images) * (255 / 16)).round().to(torch.uint8)  # from 0..16
    images = resize(images.unsqueeze(1), image_size or IMAGE_SIZE)
    return ImageSet(images, torch.tensor(digits.target)), tuple(map(str, range(10)))
