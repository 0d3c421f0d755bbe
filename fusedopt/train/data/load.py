"""Loads a data set by name, and splits it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fusedopt.train import world
from fusedopt.train.data import cifar, digits, layout, mnist
from fusedopt.train.data.check import check
from fusedopt.train.data.folder import IMAGE_SIZE, FolderSet
from fusedopt.train.data.images import DataError
from fusedopt.train.data.scan import shorten
from fusedopt.train.data.splits import Part, Splits, restrict, some_of_each_class, split_indices
from fusedopt.train.options import FOLDER, folder_path

NAMES = ("digits", *cifar.CIFAR, *mnist.MNIST, f"{FOLDER}PATH")

# Training, validation and test set, where there are such; classes; remarks.
Whole = tuple[Part, Part | None, Part | None, tuple[str, ...], tuple[str, ...]]

# Shares of the images that are put aside where the data set itself doesn't.
VALIDATION, TEST = 0.1, 0.2


def load_data(
    spec: str,
    *,
    root: str | Path,
    seed: int,
    download: bool = False,
    image_size: int | None = None,
    classes: Sequence[int] | None = None,
    per_class: int | None = None,
    skip_bad_images: bool = False,
    say: Callable[[str], None] = lambda text: None,
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
        skip_bad_images: leave those image files of a folder out that can't be read. The others
            are in the parts that they would be in with them.
        say: is told the classes, and what in a folder isn't read, as soon as that is known.

    Returns:
        The three parts, which share no image and are the same for the same seed.

    Raises:
        BadImages: files of a folder can't be read, and aren't to be skipped.
        DataError: the data can't be had or read, or has no such classes.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size must be at least 1, not {image_size}")
    try:
        *given, names, remarks = _read(spec, Path(root), download, image_size)
    except OSError as error:  # a folder that may not be looked into
        raise DataError(f"cannot read {error.filename or spec}: {error.strerror}") from error
    if classes is not None:
        _check_classes(classes, names)
    used = names if classes is None else tuple(names[i] for i in classes)
    say(f"{spec}: {len(used)} classes: {shorten(used)}")
    if spec.startswith(FOLDER) and image_size is None:
        remarks = (*remarks, f"scaled to {IMAGE_SIZE}x{IMAGE_SIZE} pixels: no image size is given")
    for remark in remarks:
        say(f"  {remark}")
    parts = _complete(given, seed, names)
    found = {name for part in parts for name in part.names} if spec.startswith(FOLDER) else set()
    if classes is not None:
        parts = [restrict(part, classes) for part in parts]
    if per_class is not None:
        parts[0] = some_of_each_class(parts[0], len(used), per_class, seed)
    if spec.startswith(FOLDER):
        parts = check(parts, used, skip_bad_images, say)
        found.difference_update(name for part in parts for name in part.names)
    mean, std = parts[0].statistics()
    channels, size, _ = parts[0][0][0].shape
    return Splits(*parts, used, channels, size, mean, std, unused=tuple(sorted(found)))


def _read(spec: str, root: Path, download: bool, image_size: int | None) -> Whole:
    """Returns the parts that a data set comes in, its classes, and remarks on its files."""
    if spec == "digits":
        whole, names = digits.load(image_size)
        return whole, None, None, names, ()
    if spec == FOLDER:
        raise DataError(f"{FOLDER!r} names no folder; the form is {FOLDER}PATH")
    if spec.startswith(FOLDER):
        return _read_folder(folder_path(spec), image_size or IMAGE_SIZE)
    for module, known in ((cifar, cifar.CIFAR), (mnist, mnist.MNIST)):
        if spec in known:
            train, test, names = module.load(spec, root, download)
            return train.resized(image_size), None, test.resized(image_size), names, ()
    raise DataError(f"there is no data set {spec!r}; there are {', '.join(NAMES)}")


def _read_folder(path: Path, size: int) -> Whole:
    # One process looks, or else each may see another state of a folder that grows.
    found = world.from_first(lambda: layout.find(path))
    parts = [
        FolderSet(
            tuple(os.path.join(path, name) for name in found.names[part]),
            torch.tensor(found.labels[part], dtype=torch.int64),
            size,
            str(path),
        )
        if part in found.names
        else None
        for part in layout.WORDS
    ]
    return *parts, found.classes, found.remarks


def _complete(given: Sequence[Part | None], seed: int, names: Sequence[str]) -> list[Part]:
    """Returns training, validation and test set, those that are missing drawn from the first."""
    train, validation, test = given
    split = split_indices(
        train.labels.tolist(),
        seed,
        0 if validation is not None else VALIDATION,
        0 if test is not None else TEST,
        names,
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
