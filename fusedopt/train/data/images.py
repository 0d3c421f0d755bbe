"""What a data set is here: images of 8 bits with labels, some of which can be taken out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset


class DataError(Exception):
    """Data that can't be had or read; its text is the whole message, and names the file."""

    def __str__(self) -> str:
        text = super().__str__()
        # A DataLoader raises an error of its workers again with their traceback as its text.
        if "Traceback" in text:
            text = text.rpartition("DataError: ")[2].strip()
        return text


def resize(images: Tensor, size: int) -> Tensor:
    """Returns images (N, C, H, W), uint8, with `size` pixels each way, by antialiased bilinear."""
    if images.shape[-2:] == (size, size):
        return images
    scaled = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class ImageSet(Dataset):
    """A data set that is held in memory, and gives one `(image, label)` for each index.

    Attributes:
        images: (N, C, H, W), uint8.
        labels: (N,), int64.
        image_size: what the images that are given out measure each way; None for H. They are
            resized when asked for, because large copies of small images may not fit in memory.
    """

    images: Tensor
    labels: Tensor
    image_size: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        if self.image_size is not None:
            image = resize(image.unsqueeze(0), self.image_size).squeeze(0)
        return image, int(self.labels[index])

    def take(self, indices: Sequence[int] | Tensor) -> ImageSet:
        """Returns the data set of these images, in this order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def with_labels(self, labels: Tensor) -> ImageSet:
        """Returns the same images with other labels."""
        return replace(self, labels=labels)

    def resized(self, image_size: int | None) -> ImageSet:
        """Returns the same images, given out in another size, unless that is None."""
        return self if image_size is None else replace(self, image_size=image_size)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns mean and standard deviation of each channel, in 0..1."""
        levels = torch.arange(256, dtype=torch.float64) / 255
        means, deviations = [], []
        for channel in self.images.unbind(1):
            # Counts are exact, and no copy of all images in floating point is made.
            share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
            mean = (share * levels).sum()
            means.append(mean.item())
            deviations.append((share * (levels - mean) ** 2).sum().sqrt().item())
        return tuple(means), tuple(deviations)
