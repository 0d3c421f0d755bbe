"""Image files, read with Pillow when asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from fusedopt.train.data.images import DataError, ImageSet

IMAGE_SIZE = 224
SAMPLE = 512  # images of which the statistics are taken


def read_image(path: Path, image_size: int, in_channels: int = 3) -> Tensor:
    """Reads an image file: upright, the largest square in its middle, scaled.

    Args:
        path: in any format that Pillow reads; of several frames, the first. 16 bits per channel
            become 8, and so do floating-point values from 0 to 1.
        image_size: height and width of the result.
        in_channels: 3 for colour, 1 for gray.

    Returns:
        (in_channels, image_size, image_size), uint8.

    Raises:
        DataError: the file is missing, damaged or no image, or its values can't be brought to 8
            bits.
    """
    try:
        check_regular(path)
        image = decode(path, in_channels)
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    except Exception as error:  # Pillow raises whatever the damage makes it stumble over
        raise unreadable(path, error) from error
    pixels = np.array(image).reshape(image_size, image_size, in_channels)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def check_regular(path: Path) -> None:
    """Raises a DataError for what isn't there, and for pipes and devices, which may never end."""
    if not path.is_file():
        link = ", and is a link that leads nowhere" if path.is_symlink() else ""
        raise DataError("is no file" if path.exists() else f"doesn't exist{link}")


def decode(file: Path | BinaryIO, in_channels: int = 3) -> Image.Image:
    """Returns a file's image, upright, as "RGB" or, for one channel, "L"."""
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    elif image.mode == "La":
        image = image.convert("LA")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # or else Pillow warns, each time
    return image.convert("L" if in_channels == 1 else "RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scales gray of 16 bits, which Pillow may hold in 32, and of floating-point numbers."""
    values = np.asarray(image)
    most = 1 if image.mode == "F" else 65535
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= most):
        raise DataError(f"has values from {low:g} to {high:g}, and must have them in 0 to {most}")
    return Image.fromarray((values * (255 / most)).round().astype(np.uint8))


def unreadable(path: Path, error: Exception) -> DataError:
    """Returns an error that names the file, and what is wrong with it, in one line."""
    what = f"is damaged, or no image: {error}"
    if isinstance(error, UnidentifiedImageError):  # whose text names an object in memory
        what = "is damaged, or no image: Pillow doesn't know its format"
    elif isinstance(error, DataError):
        what = str(error)
    elif isinstance(error, OSError) and error.strerror:
        what = f"can't be read: {error.strerror}"
    return DataError(f"{path} {what}".splitlines()[0])


@dataclass(frozen=True, eq=False)
class FolderSet(Dataset):
    """A data set of image files, which gives one `(image, label)` for each index.

    Attributes:
        paths: the files.
        labels: (N,), int64.
        image_size: what the images measure each way when they are given out.
        root: the folder that all files are in; "" where it isn't known.
        stamps: (N, 3), int64: size in bytes, time of the last change in ns, and checksum of each
            file, as `check` has found them; None before.
    """

    paths: tuple[str, ...]
    labels: Tensor
    image_size: int
    root: str = ""
    stamps: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return read_image(Path(self.paths[index]), self.image_size), int(self.labels[index])

    @property
    def names(self) -> list[str]:
        """The files' paths relative to `root`."""
        start = os.path.join(self.root, "")
        return [path.removeprefix(start) for path in self.paths]

    def take(self, indices: Sequence[int] | Tensor) -> FolderSet:
        """Returns the data set of these images, in this order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        paths = tuple(self.paths[i] for i in chosen.tolist())
        stamps = None if self.stamps is None else self.stamps[chosen]
        return replace(self, paths=paths, labels=self.labels[chosen], stamps=stamps)

    def with_labels(self, labels: Tensor) -> FolderSet:
        """Returns the same images with other labels."""
        return replace(self, labels=labels)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns mean and standard deviation of each channel, in 0..1, of up to 512 images."""
        count = min(SAMPLE, len(self))
        chosen = [i * len(self) // count for i in range(count)]
        images = torch.stack([self[i][0] for i in chosen])
        return ImageSet(images, self.labels[chosen]).statistics()
