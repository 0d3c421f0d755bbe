"""Loads a data set by name, and splits it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fusedopt.train.data import cifar, digits, folder, mnist
from fusedopt.train.data.images import DataError
from fusedopt.train.data.splits import Part, Splits, restrict, some_of_each_class, split_indices

NAMES = ("digits", *cifar.CIFAR, *mnist.MNIST, "folder:PATH")
FOLDER = "folder:"

Whole = tuple[Part, Part | None, Part | None, tuple[str, ...]]

# Shares of the images that are put aside where the data set itself doesn't.
VALIDATION, TEST = 0.1, 0.2


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

    A data set's own test set and validation set are kept. Where there is none, it is drawn from
    the training images, each class in the same proportion: a tenth for validation, a fifth for
    the test.

    Args:
        spec: "digits", "cifar10", "cifar100", "mnist", "fashion-mnist" or "folder:PATH".
        root: the folder where downloaded data sets are: the archives of CIFAR, and MNIST/raw and
            FashionMNIST/raw, as torchvision has it.
        seed: decides the split, and which images `per_class` takes.
        download: fetch what isn't there; check what is.
        image_size: height and width of the images; None for the data set's own, 16 for digits and
            224 for a folder.
        classes: use only these, in this order: labels count from 0.
        per_class: use only so many training images of each class. Validation and test set stay
            as large as they are.

    Returns:
        The three parts, which share no image and are the same for the same seed.

    Raises:
        DataError: the data can't be had or read, or has no such classes.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size must be at least 1, not {image_size}")
    try:
        *given, names = _read(spec, root, download, image_size)
    except OSError as error:  # a folder that may not be looked into
        raise DataError(f"cannot read {error.filename or spec}: {error.strerror}") from error
    parts = _complete(given, seed)
    if classes is not None:
        _check_classes(classes, names)
        parts = [restrict(part, classes) for part in parts]
        names = tuple(names[i] for i in classes)
    if per_class is not None:
        parts[0] = some_of_each_class(parts[0], len(names), per_class, seed)
    mean, std = parts[0].statistics()
    channels, size, _ = parts[0][0][0].shape
    return Splits(*parts, names, channels, size, mean, std)


def _read(spec: str, root: Path, download: bool, image_size: int | None) -> Whole:
    """Returns the parts that a data set comes in, training, validation, test, and its classes."""
    if spec == "digits":
        whole, names = digits.load(image_size)
        return whole, None, None, names
    if spec.startswith(FOLDER):
        return folder.load(Path(spec.removeprefix(FOLDER)), image_size)
    for module, known in ((cifar, cifar.CIFAR), (mnist, mnist.MNIST)):
        if spec in known:
            train, test, names = module.load(spec, root, download)
            return train.resized(image_size), None, test.resized(image_size), names
    raise DataError(f"there is no data set {spec!r}; there are {', '.join(NAMES)}")


def _complete(given: Sequence[Part | None], seed: int) -> list[Part]:
    """Returns training, validation and test set, those that are missing drawn from the first."""
    train, validation, test = given
    split = split_indices(
        train.labels.tolist(),
        seed,
        0 if validation is not None else VALIDATION,
        0 if test is not None else TEST,
    )
    return [
        train.take(split.train),
        train.take(split.validation) if validation is None else validation,
        train.take(split.test) if test is None else test,
    ]


def _check_classes(classes: Sequence[int], names: Sequence[str]) -> None:
    """Raises a DataError unless `classes` are at least two different classes of the data set."""
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise DataError(f"classes: at least two different ones are needed, not {list(classes)}")
    wrong = [i for i in classes if not 0 <= i < len(names)]
    if wrong:
        raise DataError(f"classes: {wrong[0]} is not among 0 to {len(names) - 1}")
