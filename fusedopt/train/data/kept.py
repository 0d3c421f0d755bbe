"""The split of a folder of images in a checkpoint, and finding it again when a run is resumed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusedopt.train import world
from fusedopt.train.data import layout
from fusedopt.train.data.check import look_at, lost_classes, report, require_some, without
from fusedopt.train.data.folder import FolderSet
from fusedopt.train.data.images import DataError
from fusedopt.train.data.scan import shorten
from fusedopt.train.data.splits import Splits

PARTS = ("train", "validation", "test")
# One string instead of a million: torch.load reads those, one by one, in seconds. No file's name
# has this character.
_BETWEEN = "\0"


def keep(splits: Splits) -> dict[str, Any] | None:
    """Returns which file of a folder is in which part, for a checkpoint; None for other data."""
    kept: dict[str, Any] = {"unused": _BETWEEN.join(splits.unused)}
    for name in PARTS:
        part = getattr(splits, name)
        if not isinstance(part, FolderSet):
            return None
        names = _BETWEEN.join(part.names)
        kept[name] = {"names": names, "labels": part.labels, "stamps": part.stamps}
    return kept


def names_of(kept: dict[str, Any], part: str) -> list[str]:
    """Returns the names of a part's files.

    Raises:
        KeyError, TypeError, AttributeError: it is nothing that was kept.
    """
    return _split(kept[part]["names"])


def _split(names: str) -> list[str]:
    return names.split(_BETWEEN) if names else []


@dataclass(frozen=True)
class _Differences:
    """How a folder's files differ from what was kept of them.

    Attributes:
        gone: indices of files that aren't there.
        touched: indices of those that have another size or time of change.
        new: names of files that weren't there.
        remarks: on files that aren't read.
    """

    gone: list[int]
    touched: list[int]
    new: list[str]
    remarks: list[str]


def find_again(
    content: dict[str, Any],
    root: Path,
    *,
    skip_bad_images: bool,
    say: Callable[[str], None],
) -> Splits:
    """Returns the split of a checkpoint, of the files that are still there.

    Files that have appeared since are left out. Only those are looked at that have another size
    or time of change than before, and checksums tell which of them have changed.

    Args:
        content: the checkpoint's, with what `keep` returned as "split".
        root: the folder with the images now.
        skip_bad_images: leave changed files out that can't be read.
        say: is told what has changed.

    Raises:
        BadImages: changed files can't be read, and aren't to be skipped.
        DataError: the folder or all files of a part are gone.
        OSError: a file can't be looked at.
        KeyError, TypeError, ValueError, AttributeError, RuntimeError: the checkpoint is damaged.
    """
    size, classes = content["image_size"], tuple(content["classes"])
    old = [_part(content["split"][name], root, size) for name in PARTS]
    names = [name for part in old for name in part.names]
    known = set(names) | set(_split(content["split"]["unused"]))
    stamps = torch.cat([part.stamps for part in old])
    found = world.from_first(lambda: _compare(root, names, known, stamps))
    now, bad = look_at([os.path.join(root, names[i]) for i in found.touched])
    differ = (now[:, ::2] != stamps[found.touched][:, ::2]).any(1).tolist()  # sizes, checksums
    changed = [i for j, i in enumerate(found.touched) if differ[j] and j not in bad]
    stamps[found.touched] = now

    say(f"folder:{root}: {len(classes)} classes: {shorten(classes)}")
    for remark in found.remarks:
        say(f"  {remark}")
    _say_images("gone since the checkpoint", [names[i] for i in found.gone], say)
    _say_images("changed since the checkpoint", [names[i] for i in changed], say)
    _say_images("new since the checkpoint, and left out", found.new, say)
    report(sorted(bad.values()), len(names), skip_bad_images, say)
    lost = {*found.gone, *(found.touched[j] for j in bad)}
    if len(lost) == len(names):
        raise DataError(f"{root} has none of the {len(names)} images that the run had")
    parts = without(old, stamps, lost)
    require_some(old, parts, "is left" if found.gone else "can be read")
    for name in lost_classes(old, parts, classes):
        say(f"  no training image of the class {name} is left: the run goes on without it")
    used = {name for part in parts for name in part.names}
    statistics = tuple(content["mean"]), tuple(content["std"])
    channels, unused = content["in_channels"], tuple(sorted(known - used))
    return Splits(*parts, classes, channels, size, *statistics, unused=unused)


def _say_images(what: str, names: Sequence[str], say: Callable[[str], None]) -> None:
    if names:
        count = "1 image is" if len(names) == 1 else f"{len(names)} images are"
        say(f"  {count} {what}: {shorten(names, 6)}")


def _part(kept: dict[str, Any], root: Path, size: int) -> FolderSet:
    paths = tuple(os.path.join(root, name) for name in _split(kept["names"]))
    labels, stamps = kept["labels"], kept["stamps"]
    if labels.shape != (len(paths),) or stamps.shape != (len(paths), 3):
        raise ValueError(f"{len(paths)} files, but labels {tuple(labels.shape)}")
    return FolderSet(paths, labels, size, str(root), stamps)


def _compare(root: Path, names: Sequence[str], known: set[str], stamps: Tensor) -> _Differences:
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; --data folder:PATH says where it is now")
    gone, touched = [], []
    for i, (name, (size, changed, _)) in enumerate(zip(names, stamps.tolist(), strict=True)):
        try:
            status = os.stat(os.path.join(root, name))
        except (FileNotFoundError, NotADirectoryError):
            gone.append(i)
            continue
        if (status.st_size, status.st_mtime_ns) != (size, changed):
            touched.append(i)
    try:
        found = layout.find(root)
    except (DataError, OSError) as error:  # nothing that keeps the files of before from training
        return _Differences(gone, touched, [], [f"not looked for new images: {error}"])
    new = [name for part in found.names.values() for name in part if name not in known]
    return _Differences(gone, touched, new, list(found.remarks))
