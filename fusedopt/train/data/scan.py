"""Which image files lie below some folders: each real one once, and hidden ones never."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from fusedopt.train.data.images import DataError

# Pillow recognises these and can't decode them, or only with another program (Ghostscript).
_NOT_DECODED = frozenset(("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"))
# What systems put among a user's files, such as a NAS's thumbnails: hidden, but for the dot.
_HIDDEN = frozenset(("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found"))
_OF_RUNS = ("checkpoint.pt", "compare.csv")
AROUND, HIDDEN = "to the data's folder itself, or to one around it", "to a hidden folder"


@functools.cache
def suffixes() -> frozenset[str]:
    """Returns how names of images end that this Pillow reads, in small letters, with the dot."""
    known = Image.registered_extensions()  # first, because it loads the plugins
    readable = set(Image.OPEN) - _NOT_DECODED | {"MPO"}  # which is opened as a JPEG
    return frozenset(suffix for suffix, name in known.items() if name in readable)


def is_image(name: str) -> bool:
    """Returns whether a file's name ends as an image's."""
    return os.path.splitext(name)[1].lower() in suffixes()


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder of this name is never read."""
    return name.startswith(".") or name in _HIDDEN


def has_a_run(folder: str) -> bool:
    """Returns whether this script has written to a folder, or to one in it: its charts are no data.

    Asked of folders, and not of each file.
    """
    folders = [folder]
    with os.scandir(folder) as entries:
        folders += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    return any(os.path.exists(os.path.join(f, name)) for f in folders for name in _OF_RUNS)


def shorten(names: Sequence[str], most: int = 10) -> str:
    """Returns names joined by commas, those in the middle of many left out."""
    if len(names) > most:
        names = [*names[: most - 2], "...", names[-1]]
    return ", ".join(names)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Returns whether something is a folder or a link to one, and not, say, a link in a circle."""
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def is_file(entry: os.DirEntry[str]) -> bool:
    """Returns whether something is a regular file or a link to one."""
    return os.path.isfile(entry) if entry.is_symlink() else entry.is_file()


def describe(others: Counter[str]) -> str:
    """Returns how many files are no images, and of what kinds, for people."""
    count = sum(others.values())
    are = "files are no images" if count > 1 else "file is no image"
    kinds = [f"{n} {kind}" for kind, n in sorted(others.items(), key=lambda x: (-x[1], x[0]))]
    return f"{count} {are} that Pillow reads: {shorten(kinds)}"


def is_around(real: str, other: str) -> bool:
    """Returns whether a folder is another one, or has it somewhere in it; both are real paths."""
    return os.path.commonpath((real, other)) == real


def why_not(real: str, root: str) -> str | None:
    """Returns why a link from somewhere in `root` to a folder isn't followed; None if it is.

    Args:
        real: the real path of the folder that it leads to.
        root: the real path of the data set's folder.
    """
    if is_around(real, root):
        return AROUND
    below = real.removeprefix(os.path.join(root, ""))
    return HIDDEN if below != real and any(map(is_hidden, below.split(os.sep))) else None


class _Claim(NamedTuple):
    """Which folder's images these are, whether no link was followed to them, and their path."""

    owner: int
    direct: bool
    path: str


class Walk:
    """Walks through folders, and follows links to each real folder or file once.

    What lies in one of the folders belongs to it, and a link from another one to it is left out.
    A folder's real place says whether it is hidden, a file's name does: git-annex and DVC keep
    files in hidden folders, and put links to them where they belong.

    Args:
        root: the data set's folder.
        owners: the folders to walk through, relative to `root`; none lies in another.

    Attributes:
        images: of each owner, the paths of its images relative to `root`, sorted.
        others: how many files are no images, by the end of their names.
        left_out: for each link that wasn't followed, what to say of it.

    Raises:
        DataError: two owners are the same folder, or lead to the same one by links.
        OSError: a folder can't be looked into.
    """

    def __init__(self, root: Path, owners: Sequence[str]) -> None:
        self.images: list[list[str]] = [[] for _ in owners]
        self.others: Counter[str] = Counter()
        self.left_out: list[str] = []
        self._root, self._owners = os.path.join(root, ""), owners
        self._real_root = os.path.realpath(root)
        self._claims: dict[str, _Claim] = {}  # by real path: of folders, and of files by links
        self._links: list[tuple[str, int]] = []
        self._files: dict[int, tuple[str, int]] = {}  # by inode: path and owner
        self._file_links: list[tuple[str, int]] = []
        real = [os.path.realpath(self._root + name) for name in owners]
        for i, name in enumerate(owners):
            first = self._claims.setdefault(real[i], _Claim(i, True, self._root + name)).owner
            if first != i:
                raise DataError(
                    f"{self._root}{owners[first]} and {self._root}{name} are the same folder"
                )
        for i, name in enumerate(owners):
            self._read(self._root + name, real[i], i, direct=True)
        for path, owner in self._links:  # grows meanwhile: a link may lead to others
            self._follow(path, owner)
        for path, owner in self._file_links:
            self._follow_to_file(path, owner)
        for names in self.images:
            names.sort()

    def _read(self, folder: str, real: str, owner: int, direct: bool) -> None:
        stack = [(folder, real)]
        while stack:
            folder, real = stack.pop()
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                if is_hidden(entry.name):
                    continue
                if entry.is_symlink():
                    self._links.append((entry.path, owner))
                elif entry.is_dir():
                    below = os.path.join(real, entry.name)
                    if self._claim(below, _Claim(owner, direct, entry.path)):
                        stack.append((entry.path, below))
                elif not self._is_linked(entry, owner):
                    self._take(entry.path, owner, entry.is_file())

    def _is_linked(self, entry: os.DirEntry[str], owner: int) -> bool:
        """Returns whether a file has been taken already, under another name (by a hard link).

        Raises:
            DataError: it was taken for another owner.
        """
        if not is_image(entry.name):
            return False
        path, first = self._files.setdefault(entry.inode(), (entry.path, owner))
        if path == entry.path or not os.path.samefile(path, entry.path):
            return False
        if first != owner:
            raise DataError(f"{path} and {entry.path} are the same file")
        self.leave_out(entry.path, f"to {path[len(self._root) :]}")
        return True

    def _take(self, path: str, owner: int, regular: bool) -> None:
        """Counts a file in. A pipe or a device is none: whoever opens it may wait forever."""
        if regular and is_image(path):
            self.images[owner].append(path[len(self._root) :])
        else:
            self.count_other(path, regular)

    def count_other(self, path: str, regular: bool) -> None:
        """Counts a file that is no image."""
        suffix = os.path.splitext(path)[1].lower() or "without an ending"
        self.others[suffix if regular else "pipe or device"] += 1

    def _claim(self, real: str, claim: _Claim) -> bool:
        """Returns whether nobody has had this folder or file before.

        Raises:
            DataError: another owner has, and it belongs to neither.
        """
        first = self._claims.setdefault(real, claim)
        if first.owner != claim.owner:
            if not first.direct and not claim.direct:
                raise DataError(f"{first.path} and {claim.path} lead to the same images: {real}")
            self.leave_out(claim.path, f"to what is read as {self._owners[first.owner]}")
        return first is claim

    def leave_out(self, path: str, why: str) -> None:
        """Notes a link that isn't followed."""
        self.left_out.append(f"{path[len(self._root) :]} (leads {why})")

    def _follow(self, path: str, owner: int) -> None:
        if not os.path.isdir(path):
            self._file_links.append((path, owner))
            return
        real = os.path.realpath(path)
        why = why_not(real, self._real_root)
        if why is not None:
            self.leave_out(path, why)
        elif self._claim(real, _Claim(owner, False, path)):
            self._read(path, real, owner, direct=False)

    def _follow_to_file(self, path: str, owner: int) -> None:
        if not is_image(path):
            self._take(path, owner, True)
            return
        if not os.path.exists(path):  # an image that is missing: reading it will say so
            self._take(path, owner, True)
            return
        real, claim = os.path.realpath(path), _Claim(owner, False, path)
        folder, name = os.path.split(real)
        if folder in self._claims and is_image(name) and not is_hidden(name):
            self._claim(folder, claim)  # taken there already
        elif self._claim(real, claim):
            self._take(path, owner, os.path.isfile(path))
