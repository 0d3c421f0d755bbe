"""Loads a data set by name, and splits it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import Dataset

from fusedopt.train.data import digits
from fusedopt.train.data.images import DataError
from fusedopt.train.data.splits import Splits, first_of_each_class, restrict, split_indices

NAMES = ("digits",)


def load_data(
    spec: str,
    *,
    root: Path,
    seed: int,
    download: bool = False,
    image_size: int | None = None,
    classes: Sequence[int] | None = None,
    per_class: int | None = None,
) -> Splits:
    """Loads a data set, split for training, validation and test.

    Args:
        spec: "digits".
        root: the folder where downloaded data sets lie.
        seed: decides the split, and which images `per_class` takes.
        download: fetch what isn't there.
        image_size: height and width of the images; None for the data set's own.
        classes: use only these, in this order: labels count from 0.
        per_class: use only so many training images of each class. Validation and test set stay
            as large as they are.

    Returns:
        The three parts, which share no image and are the same for the same seed.

    Raises:
        DataError: the data can't be had or read, or has no such classes.
    """
    if spec != "digits":
        raise DataError(f"there is no data set {spec!r}; there are {', '.join(NAMES)}")
    whole, names = digits.load(image_size)
    parts: list[Dataset] = [whole.take(part) for part in split_indices(whole.labels.tolist(), seed)]
    if classes is not None:
        _check_classes(classes, names)
        parts = [restrict(part, classes) for part in parts]
        names = tuple(names[i] for i in classes)
    if per_class is not None:
        parts[0] = first_of_each_class(parts[0], per_class, seed)
    mean, std = parts[0].statistics()
    channels, size, _ = parts[0][0][0].shape
    return Splits(*parts, names, channels, size, mean, std)


def _check_classes(classes: Sequence[int], names: tuple[str, ...]) -> None:
    """Raises a DataError unless `classes` are at least two different classes of the data set."""
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise DataError(f"classes: at least two different ones are needed, not {list(classes)}")
    wrong = [i for i in classes if not 0 <= i < len(names)]
    if wrong:
        raise DataError(f"classes: {wrong[0]} is not among 0 to {len(names) - 1}")
