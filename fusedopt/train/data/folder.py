"""A folder of images per class, read with Pillow when asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from fusedopt.train.data.images import DataError, ImageSet

IMAGE_SIZE = 224
SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
PARTS = {"train": ("train",), "validation": ("val", "validation", "valid"), "test": ("test",)}
SAMPLE = 512  # images of which the statistics are taken


def read_image(path: Path, image_size: int, in_channels: int = 3) -> Tensor:
    """Reads an image file: upright, the largest square in its middle, scaled.

    Args:
        path: in any format that Pillow reads; of several frames, the first.
        image_size: height and width of the result.
        in_channels: 3 for colour, 1 for gray.

    Returns:
        (in_channels, image_size, image_size), uint8.

    Raises:
        DataError: the file is missing, damaged, no image, or has more than 8 bits per channel.
    """
    try:
        with Image.open(path) as file:
            if file.mode.startswith(("I", "F")):  # Pillow would cut off all above 255
                raise DataError(f"{path} has more than 8 bits per channel ({file.mode})")
            image = ImageOps.exif_transpose(file).convert("L" if in_channels == 1 else "RGB")
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} doesn't exist") from error
    except Exception as error:  # Pillow raises whatever the damage makes it stumble over
        raise DataError(f"{path} is damaged, or no image: {error}") from error
    pixels = np.array(image).reshape(image_size, image_size, in_channels)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@dataclass(frozen=True, eq=False)
class FolderSet(Dataset):
    """A data set of image files, which gives one `(image, label)` for each index.

    Attributes:
        paths: the files.
        labels: (N,), int64.
        image_size: what the images measure each way when they are given out.
    """

    paths: tuple[str, ...]
    labels: Tensor
    image_size: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return read_image(Path(self.paths[index]), self.image_size), int(self.labels[index])

    def take(self, indices: Sequence[int] | Tensor) -> FolderSet:
        """Returns the data set of these images, in this order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        paths = tuple(self.paths[i] for i in chosen.tolist())
        return replace(self, paths=paths, labels=self.labels[chosen])

    def with_labels(self, labels: Tensor) -> FolderSet:
        """Returns the same images with other labels."""
        return replace(self, labels=labels)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns mean and standard deviation of each channel, in 0..1, of up to 512 images."""
        count = min(SAMPLE, len(self))
        chosen = [i * len(self) // count for i in range(count)]
        images = torch.stack([self[i][0] for i in chosen])
        return ImageSet(images, self.labels[chosen]).statistics()


def load(
    path: Path, image_size: int | None
) -> tuple[FolderSet, FolderSet | None, FolderSet | None, tuple[str, ...]]:
    """Returns training, validation and test set, and names of the classes.

    Args:
        path: has a folder for each class; or the folders train, val (or validation, valid) and
            test, or only some of them, with a folder for each class.
        image_size: height and width of the images; None for 224.

    Returns:
        What there are folders for; where there is no folder train, everything is the first set.

    Raises:
        DataError: there are no such folders, or no images in one.
    """
    if not path.is_dir():
        raise DataError(f"there is no folder {path}")
    size = image_size or IMAGE_SIZE
    if not (path / "train").is_dir():
        classes = _subfolders(path)
        return _read(path, classes, size), None, None, classes
    classes = _subfolders(path / "train")
    parts = []
    for names in PARTS.values():
        folders = [path / name for name in names if (path / name).is_dir()]
        if len(folders) > 1:
            raise DataError(f"{path} has {folders[0].name} and {folders[1].name}: which?")
        parts.append(_read(folders[0], classes, size) if folders else None)
    return (*parts, classes)


def _subfolders(path: Path) -> tuple[str, ...]:
    names = sorted(
        item.name for item in path.iterdir() if item.is_dir() and not item.name.startswith(".")
    )
    if len(names) < 2:
        raise DataError(f"{path} has {len(names)} folders, and there must be one for each class")
    return tuple(names)


def _read(path: Path, classes: Sequence[str], image_size: int) -> FolderSet:
    """Returns all images below a folder that has a folder for each class."""
    unknown = set(_subfolders(path)) - set(classes)
    if unknown:
        raise DataError(f"{path / min(unknown)}: the training images have no such class")
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(
            os.path.join(folder, file)
            for folder, _, files in os.walk(path / name, followlinks=True)
            for file in files
            if Path(file).suffix.lower() in SUFFIXES and not file.startswith(".")
        )
        if not files:
            raise DataError(f"{path / name} has no images ({', '.join(sorted(SUFFIXES))})")
        paths += files
        labels += [label] * len(files)
    return FolderSet(tuple(paths), torch.tensor(labels), image_size)
