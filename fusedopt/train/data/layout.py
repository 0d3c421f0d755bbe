"""How a folder of images is laid out: what its classes are, and whether it is split already."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusedopt.train.data.images import DataError
from fusedopt.train.data.scan import (
    Walk,
    describe,
    has_a_run,
    is_file,
    is_folder,
    is_hidden,
    is_image,
    shorten,
    why_not,
)

# The words by which Hugging Face's datasets know the splits of a folder of images, too.
WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_PARTS = {word: part for part, words in WORDS.items() for word in words}
_ANY_WORD = "|".join(sorted(_PARTS, key=len, reverse=True))
_SPLIT = re.compile(rf"({_ANY_WORD})[ ._-]*(set|data|dataset|images?|imgs?|split)?")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # also of names such as trainA


@dataclass(frozen=True)
class Found:
    """The images of a folder.

    Attributes:
        classes: their names, in the order of the labels.
        names: of "train", "validation" and "test", where there are such folders, the images'
            paths relative to the folder; where there are none, all are in "train".
        labels: of the same parts, the images' classes.
        remarks: what isn't read, and what may not be what was meant; a sentence each.
    """

    classes: tuple[str, ...]
    names: dict[str, list[str]]
    labels: dict[str, list[int]]
    remarks: tuple[str, ...]


def split_of(name: str) -> str | None:
    """Returns "train", "validation" or "test" for a folder with a usual name of it, or None."""
    match = _SPLIT.fullmatch(name.lower())
    return _PARTS[match[1]] if match else None


def is_like_a_split(name: str) -> bool:
    """Returns whether one of a name's words is one of a split."""
    return any(word.lower() in _PARTS for word in _WORD.findall(name))


def find(path: Path) -> Found:
    """Finds the images of a folder.

    Args:
        path: has a folder for each class; or folders for training, validation and test, or only
            some of them, each with a folder for each class.

    Raises:
        DataError: it can't be told what is a class and what a split, a class has no images to
            train with, or links lead from two classes to the same images.
        OSError: a folder can't be looked into.
    """
    if not path.is_dir():
        raise DataError(f"there is no folder {path}")
    remarks: list[str] = []
    runs = [item.name for item in os.scandir(path) if is_folder(item) and has_a_run(item.path)]
    if runs:
        remarks.append(f"not read, because this script has written there: {shorten(sorted(runs))}")
    parts = _parts(path, remarks)
    classes = _classes(path / parts["train"], path)
    folders: list[tuple[str, int, str]] = []  # part, label, path relative to the whole folder
    for part, name in list(parts.items()):
        own = classes if part == "train" else _labelled(path, name, classes, remarks)
        if not own:
            del parts[part]
        folders += [(part, classes.index(c), os.path.join(name, c)) for c in own]
    walk = Walk(path, [folder for _, _, folder in folders])
    remarks += _of_walk(path, walk, list(parts.values()))
    names: dict[str, list[str]] = {part: [] for part in parts}
    labels: dict[str, list[int]] = {part: [] for part in parts}
    for (part, label, folder), images in zip(folders, walk.images, strict=True):
        if not images:
            if part == "train":
                raise _no_images(path, folder, walk)
            remarks.append(f"{folder} has no images")
        names[part] += images
        labels[part] += [label] * len(images)
    for part, images in names.items():
        if not images:
            raise _no_images(path, parts[part], walk)
    return Found(classes, names, labels, tuple(remarks))


def _no_images(path: Path, folder: str, walk: Walk) -> DataError:
    left_out = [text for text in walk.left_out if text.startswith(folder + os.sep)]
    why = f"; links left out: {shorten(left_out, 3)}" if left_out else ""
    return DataError(f"{path / folder} has no images that Pillow reads{why}")


def _look_into(path: Path, root: Path) -> tuple[list[str], dict[str, str]]:
    """Returns the names of visible folders, and by name why other links to folders are left out."""
    names, left_out = [], {}
    for item in os.scandir(path):
        if is_hidden(item.name) or not is_folder(item) or has_a_run(item.path):
            continue
        why = None
        if item.is_symlink():
            real = os.path.realpath(item.path)
            why = why_not(real, os.path.realpath(root)) or why_not(real, os.path.realpath(path))
        if why is None:
            names.append(item.name)
        else:
            left_out[item.name] = why
    return sorted(names), left_out


def _folders(path: Path, root: Path) -> list[str]:
    return _look_into(path, root)[0]


def _links_left_out(path: Path, root: Path) -> str:
    links = [f"{name} (leads {why})" for name, why in sorted(_look_into(path, root)[1].items())]
    return f"; links left out: {shorten(links, 3)}" if links else ""


def _parts(path: Path, remarks: list[str]) -> dict[str, str]:
    """Returns the folder of each part; for a folder that isn't split only that of "train", ""."""
    folders = _folders(path, path)
    splits: dict[str, str] = {}
    for name in folders:
        part = split_of(name)
        if part is not None and splits.setdefault(part, name) != name:
            raise DataError(f"{path} has {splits[part]} and {name}: which?")
    splits = {part: splits[part] for part in WORDS if part in splits}
    others = [name for name in folders if name not in splits.values()]
    if "train" in splits and (len(others) == 0 or _folders(path / splits["train"], path)):
        if others:
            remarks.append(
                f"not read, because they lie beside {splits['train']}: {shorten(others)}"
            )
        return splits
    _check_classes(path, splits, others)
    if splits:
        (name,) = splits.values()
        remarks.append(f"{name} is taken for a class, because it has no folders for classes in it")
    like = [name for name in others if is_like_a_split(name)]
    if not like and _are_alike([_folders(path / name, path) for name in others]):
        remarks.append(
            f"{shorten(others)}: taken for classes, though the same folders are in each; if they"
            " are splits, call them train, val, test"
        )
    if like:
        remarks.append(
            f"{shorten(like)}: taken for classes; folders that are splits are called train, val,"
            " test"
        )
    inner = [name for name in others if any(map(split_of, _folders(path / name, path)))]
    if inner:
        remarks.append(
            f"{shorten(inner)}: splits in the folder of a class aren't known as such, and all"
            " images in it are read alike"
        )
    return {"train": ""}


def _are_alike(folders: Sequence[Sequence[str]]) -> bool:
    return len(folders) > 1 and len(folders[0]) > 1 and all(x == folders[0] for x in folders)


def _check_classes(path: Path, splits: Mapping[str, str], others: Sequence[str]) -> None:
    """Raises a DataError if the folders are no classes, or if nobody can know."""
    named = " and ".join(splits.values())
    like = [name for name in others if is_like_a_split(name)]
    if splits and not others:
        raise DataError(
            f"{path} has {named}, but no folder train with the images to train with"
            + _links_left_out(path, path)
        )
    if not splits and others and like == others and all(_folders(path / x, path) for x in others):
        raise DataError(
            f"{path} has {shorten(others)}, which look like splits and not like classes; call"
            " those folders train, val and test"
        )
    ambiguous = len(splits) > 1 or any(_folders(path / name, path) for name in splits.values())
    if ambiguous or (splits and "train" not in splits and len(others) > 1):
        raise DataError(
            f"{path} has {named} beside {shorten(others)}: a split needs a folder train, with a"
            " folder for each class in it, beside it; and a class needs another name"
        )


def _classes(path: Path, root: Path) -> tuple[str, ...]:
    names = _folders(path, root)
    if len(names) < 2:
        inner = _folders(path / names[0], root) if names else []
        hint = f"; did you mean {path / names[0]}?" if len(inner) > 1 else ""
        raise DataError(
            f"{path} has {len(names)} folders, and there must be one for each class{hint}"
            + _links_left_out(path, root)
        )
    return tuple(names)


def _labelled(path: Path, part: str, classes: Sequence[str], remarks: list[str]) -> list[str]:
    """Returns the classes that a part has folders for; none where it has no labels."""
    names = _folders(path / part, path)
    unknown = [name for name in names if name not in classes]
    if len(names) > 1 or not unknown:
        if unknown:
            raise DataError(f"{path / part / unknown[0]}: the training images have no such class")
        missing = [name for name in classes if name not in names]
        if names and missing:
            remarks.append(f"{part} has no folder for {shorten(missing)}")
    if not names or unknown:
        remarks.append(
            f"{part} has no labels, because it has no folder for each class, and is left out;"
            " images are put aside from the training images instead"
        )
        return []
    return names


def _of_walk(path: Path, walk: Walk, parts: Sequence[str]) -> list[str]:
    """Returns what to say of files that aren't read."""
    strays: list[str] = []
    for folder in dict.fromkeys(["", *parts]):
        for name, why in sorted(_look_into(path / folder, path)[1].items()):
            walk.leave_out(os.path.join(path, folder, name), why)
        for item in os.scandir(path / folder):
            if is_hidden(item.name) or is_folder(item):
                continue
            if is_file(item) and is_image(item.name):
                strays.append(os.path.join(folder, item.name))
            else:
                walk.count_other(item.path, is_file(item))
    remarks = []
    if walk.others:
        remarks.append(describe(walk.others))
    if strays:
        count = "1 image" if len(strays) == 1 else f"{len(strays)} images"
        remarks.append(
            f"not read, because in no class's folder: {count}, {shorten(sorted(strays), 4)}"
        )
    if walk.left_out:
        remarks.append(f"links left out: {shorten(walk.left_out, 6)}")
    return remarks
