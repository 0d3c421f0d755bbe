"""CIFAR-10 and CIFAR-100, in their python version, read without running what is in them."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusedopt.train.data.download import Published, require
from fusedopt.train.data.images import DataError, ImageSet

SIZE = 32


@dataclass(frozen=True)
class Cifar:
    """An archive: its name on the web, and those in it.

    Attributes:
        file: the archive.
        folder: in which its members are.
        train: members with training images.
        labels: key of the labels.
        meta: member with the names of the classes, and their key.
    """

    file: Published
    folder: str
    train: tuple[str, ...]
    labels: str
    meta: tuple[str, str]
    test: str


# Addresses and checksums: https://www.cs.toronto.edu/~kriz/cifar.html
CIFAR = {
    "cifar10": Cifar(
        Published(
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
        ),
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test="test_batch",
        labels="labels",
        meta=("batches.meta", "label_names"),
    ),
    "cifar100": Cifar(
        Published(
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
        ),
        folder="cifar-100-python",
        train=("train",),
        test="test",
        labels="fine_labels",
        meta=("meta", "fine_label_names"),
    ),
}


class _Unpickler(pickle.Unpickler):
    """Makes numpy arrays and Python's own containers, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        # numpy 1 wrote the archives; numpy 2 calls the same module numpy._core.
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def load(name: str, root: Path, download: bool) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """Returns training set, test set, and names of the classes.

    Args:
        name: "cifar10" or "cifar100", with its 100 fine classes.
        root: has the archive, or the folder that it holds, or is that folder.
        download: fetch the archive where it and the whole folder are missing.

    Raises:
        DataError: the data are missing, damaged, or not what they should be.
    """
    source = CIFAR[name]
    meta, key = source.meta
    wanted_names = [*source.train, source.test, meta]
    path = _unpacked(root, source, wanted_names, download)
    if path is None:
        require(name, root, [source.file], download)
        path = root / source.file.name
    read = _read_files if path.is_dir() else _read_members
    members = read(path, source.folder, wanted_names)
    classes = members[meta].get(key.encode())
    if not isinstance(classes, list) or not all(isinstance(text, bytes) for text in classes):
        raise _damaged(path, f"{meta} has no {key}")
    names = tuple(text.decode("ascii", "replace") for text in classes)
    train, test = (
        _images(path, source.labels, {member: members[member] for member in wanted}, len(names))
        for wanted in (source.train, [source.test])
    )
    return train, test, names


def _damaged(path: Path, reason: object) -> DataError:
    return DataError(f"{path} is damaged or another file: {reason}")


def _unpacked(root: Path, source: Cifar, names: Sequence[str], download: bool) -> Path | None:
    """Returns what is to be read instead of the archive: a tar file, or a folder; or None.

    A folder that has only some of the files is taken too, so that the missing one is named, unless
    the archive can be had.
    """
    if (root / source.file.name).is_file():
        return None
    tar = root / source.file.name.removesuffix(".gz")
    if tar.is_file():
        return tar
    for folder in (root / source.folder, root):
        there = [name for name in names if (folder / name).is_file()]
        # CIFAR-100's are called train, test and meta, as folders of other data may be.
        if len(there) == len(names) or (there and folder != root and not download):
            return folder
    return None


def _read_files(path: Path, folder: str, names: Sequence[str]) -> dict[str, dict]:
    """Returns the dictionaries that are pickled in the files of the unpacked folder, by name."""
    try:
        return {name: _unpickle(name, (path / name).read_bytes()) for name in names}
    except FileNotFoundError as error:
        raise _damaged(path, f"{folder} has no {Path(error.filename).name}") from error
    except OSError as error:
        raise _damaged(path, error.strerror or error) from error
    except pickle.UnpicklingError as error:
        raise _damaged(path, error) from error


def _read_members(path: Path, folder: str, names: Sequence[str]) -> dict[str, dict]:
    """Returns the dictionaries that are pickled in an archive's members, by name."""
    found: dict[str, dict] = {}
    wanted = {f"{folder}/{name}": name for name in names}
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.name in wanted else None
                    if content is not None:
                        name = wanted[member.name]
                        found[name] = _unpickle(name, content.read())
            while stream.read(1 << 20):  # to the end, where the checksum of all is
                pass
    except OSError as error:
        raise _damaged(path, error.strerror or error) from error
    except (tarfile.TarError, EOFError, zlib.error, pickle.UnpicklingError) as error:
        raise _damaged(path, error) from error
    missing = [name for name in names if name not in found]
    if missing:
        raise _damaged(path, f"it has no {folder}/{missing[0]}")
    return found


def _unpickle(name: str, content: bytes) -> dict:
    try:
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # pickle's documentation names no end to what damage may raise
        raise pickle.UnpicklingError(f"{name} can't be read: {error}") from error
    if not isinstance(value, dict):
        raise pickle.UnpicklingError(f"{name} is not a dictionary")
    return value


def _images(path: Path, key: str, batches: dict[str, dict], classes: int) -> ImageSet:
    """Returns the images of some batches, checked."""
    images, labels = [], []
    for member, batch in batches.items():
        pixels, own_labels = batch.get(b"data"), batch.get(key.encode())
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2:
            raise _damaged(path, f"{member} has no array of bytes named data")
        if pixels.shape[1] != 3 * SIZE**2:
            raise _damaged(path, f"an image in {member} has {pixels.shape[1]} bytes")
        if not isinstance(own_labels, list) or len(own_labels) != len(pixels):
            raise _damaged(path, f"{member} has no list {key} with {len(pixels)} entries")
        if not all(isinstance(label, int) and 0 <= label < classes for label in own_labels):
            raise _damaged(path, f"a label in {member} is not one of {classes}")
        images.append(torch.from_numpy(pixels.reshape(-1, 3, SIZE, SIZE)))
        labels += own_labels
    return ImageSet(torch.cat(images), torch.tensor(labels, dtype=torch.int64))
