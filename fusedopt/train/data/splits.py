"""Training, validation and test set: splitting, and what a model must know of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from sklearn.model_selection import train_test_split

from fusedopt.train.data.folder import FolderSet
from fusedopt.train.data.images import DataError, ImageSet

Part = ImageSet | FolderSet


class Split(NamedTuple):
    """Indices of the images for training, for validation and for the one test at the end."""

    train: list[int]
    validation: list[int]
    test: list[int]


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set in three parts that share no image.

    Attributes:
        train: gives `(image, label)` for an index: uint8 (in_channels, image_size, image_size),
            and an int below the number of classes.
        validation: the same, for what is decided while training.
        test: the same, to be looked at once, at the end.
        classes: names of the classes, in the order of the labels.
        in_channels: channels of an image.
        image_size: height and width of an image.
        mean: of each channel of the training images, in 0..1.
        std: standard deviation of each channel of the training images, in 0..1.
        unused: of a folder's images that are in no part, the paths relative to the folder.
    """

    train: Part
    validation: Part
    test: Part
    classes: tuple[str, ...]
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    unused: tuple[str, ...] = ()


def split_indices(
    labels: Sequence[int],
    seed: int,
    validation: float = 0.1,
    test: float = 0.2,
    names: Sequence[str] | None = None,
) -> Split:
    """Splits images at random, each class in the same proportion, and no image in two parts.

    Args:
        labels: the class of each image.
        seed: the same seed gives the same split.
        validation: share of all images, 0 for none.
        test: share of all images, 0 for none.
        names: of the classes, for messages.

    Returns:
        Three disjoint lists of indices that together cover all the images.

    Raises:
        DataError: there are too few images to have each class in each part.
    """
    train, parts = list(range(len(labels))), []
    for share in (test, validation):
        part: list[int] = []
        if share > 0:
            size = math.ceil(share * len(labels))
            try:
                train, part = train_test_split(
                    train, test_size=size, stratify=[labels[i] for i in train], random_state=seed
                )
            except ValueError as error:
                shares = [share for share in (validation, test) if share > 0]
                raise DataError(_too_few(labels, share, shares, names)) from error
        parts.append(part)
    return Split(train, parts[1], parts[0])


def _too_few(
    labels: Sequence[int], share: float, shares: Sequence[float], names: Sequence[str] | None
) -> str:
    """Says why a share of the images can't be put aside, each class in the same proportion."""
    counts = Counter(labels)
    rare, count = min(counts.items(), key=lambda pair: pair[1])
    some = f"{share:.0%} of the images can't be put aside, each class in the same proportion"
    if count < 1 + len(shares):
        name = rare if names is None else names[rare]
        images = f"{count} image{'s' * (count > 1)}"
        return f"{some}: the class {name} has {images}, and each class needs {1 + len(shares)}"
    least = math.floor((len(counts) - 1) / min(shares)) + 1
    return f"{some}: there are {len(labels)}, and {len(counts)} classes need {least}"


def restrict(part: Part, classes: Sequence[int]) -> Part:
    """Returns the images of these classes only, labelled by their position in `classes`.

    Raises:
        DataError: there are none.
    """
    new_label = torch.full((max(int(part.labels.max()), *classes) + 1,), -1)
    new_label[torch.as_tensor(classes)] = torch.arange(len(classes))
    labels = new_label[part.labels]
    chosen = (labels >= 0).nonzero().flatten()
    if len(chosen) == 0:
        raise DataError(f"classes: one part of the data has no image of {list(classes)}")
    return part.take(chosen).with_labels(labels[chosen])


def some_of_each_class(part: Part, classes: int, count: int, seed: int) -> Part:
    """Returns `count` images of each of so many classes, drawn with `seed`.

    Raises:
        DataError: a class has fewer, or `count` is below 1.
    """
    if count < 1:
        raise DataError(f"per_class must be at least 1, not {count}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(part), generator=generator)
    chosen = []
    for label in range(classes):
        of_class = order[part.labels[order] == label][:count]
        if len(of_class) < count:
            raise DataError(
                f"per_class is {count}, but class {label} has {len(of_class)} images for training"
            )
        chosen.append(of_class)
    return part.take(torch.cat(chosen).sort().values)
