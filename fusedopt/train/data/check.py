"""Looks at all image files before training, so that a damaged one doesn't end it in the middle."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fusedopt.train import world
from fusedopt.train.data.folder import FolderSet, check_regular, decode, unreadable
from fusedopt.train.data.images import DataError

Stamp = tuple[int, int, int]
AT_ONCE = 4096  # files that wait for a thread: a million would take as many objects' memory
NAMED = 20


class BadImages(DataError):
    """Image files that can't be read."""


def _look_at(path: str) -> Stamp | str:
    """Decodes an image, and returns its file's stamp, or what is wrong with it.

    That takes half of the time in which an epoch reads the image (1.8 of 3.7 ms for a JPEG of
    500x375). Its header would take 0.1 ms, but most damaged JPEGs are cut off, and neither the
    header nor Pillow's `verify` shows that.
    """
    file = Path(path)
    try:
        check_regular(file)
        status, content = file.stat(), file.read_bytes()
        decode(io.BytesIO(content))
    except Exception as error:  # Pillow raises whatever the damage makes it stumble over
        return str(unreadable(file, error))
    return len(content), status.st_mtime_ns, zlib.crc32(content)


def look_at(paths: Sequence[str]) -> tuple[Tensor, dict[int, str]]:
    """Decodes images in torch's number of threads; several processes each look at a part.

    Args:
        paths: the files, the same in all processes.

    Returns:
        (N, 3), int64, the stamps of `FolderSet`; and by index what is wrong with bad ones.
    """
    stamps, bad = np.zeros((len(paths), 3), np.int64), {}
    own = range(world.rank(), len(paths), world.size())
    quiet = True if world.rank() else None  # None: where stderr is no terminal
    found: list[tuple[int, Stamp | str]] = []
    bar = tqdm(total=len(own), desc="checking images", unit="img", leave=False, disable=quiet)
    with bar, ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for start in range(0, len(own), AT_ONCE):
            some = own[start : start + AT_ONCE]
            for i, result in zip(
                some, threads.map(_look_at, (paths[i] for i in some)), strict=True
            ):
                found.append((i, result))
                bar.update()
    for i, result in (pair for pairs in world.gather(found) for pair in pairs):
        if isinstance(result, str):
            bad[i] = result
        else:
            stamps[i] = result
    return torch.from_numpy(stamps), dict(sorted(bad.items()))


def check(
    parts: Sequence[FolderSet],
    classes: Sequence[str],
    skip_bad: bool,
    say: Callable[[str], None],
) -> list[FolderSet]:
    """Looks at the images of training, validation and test set.

    Args:
        parts: the three.
        classes: their names.
        skip_bad: leave bad ones out.
        say: is told which are left out.

    Returns:
        The parts with their files' stamps.

    Raises:
        BadImages: there are some, and they aren't to be skipped.
        DataError: without them nothing is left of a part, or of a class to train with.
    """
    stamps, bad = look_at([path for part in parts for path in part.paths])
    report(sorted(bad.values()), len(stamps), skip_bad, say)
    checked = without(parts, stamps, set(bad))
    require_some(parts, checked, "can be read")
    lost = lost_classes(parts, checked, classes)
    if lost:
        raise DataError(f"no training image of the class {lost[0]} can be read")
    return checked


def report(bad: Sequence[str], count: int, skip_bad: bool, say: Callable[[str], None]) -> None:
    """Says which images are bad and skipped.

    Raises:
        BadImages: there are some, and they aren't to be skipped.
    """
    if bad and not skip_bad:
        more = f"\n  and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise BadImages(
            f"{len(bad)} of {count} images can't be read; --skip-bad-images leaves them out:\n  "
            + "\n  ".join(bad[:NAMED])
            + more
        )
    if bad:
        say(f"{len(bad)} of {count} images can't be read, and are left out:")
        for text in bad:
            say(f"  {text}")


def require_some(before: Sequence[FolderSet], after: Sequence[FolderSet], what: str) -> None:
    """Raises a DataError if a part has lost all its images, none of which does `what` any more."""
    names = ("training", "validation", "test")
    for name, old, new in zip(names, before, after, strict=True):
        if len(old) and not len(new):
            raise DataError(f"none of the {len(old)} {name} images {what}")


def lost_classes(
    before: Sequence[FolderSet], after: Sequence[FolderSet], classes: Sequence[str]
) -> list[str]:
    """Returns the names of classes that have lost all their images to train with."""
    lost = set(before[0].labels.tolist()) - set(after[0].labels.tolist())
    return [classes[label] for label in sorted(lost)]


def without(parts: Sequence[FolderSet], stamps: Tensor, lost: set[int]) -> list[FolderSet]:
    """Returns the parts with new stamps, and without the images of these indices in all of them."""
    left, start = [], 0
    for part in parts:
        own = [i for i in range(len(part)) if start + i not in lost]
        left.append(replace(part, stamps=stamps[start : start + len(part)]).take(own))
        start += len(part)
    return left
