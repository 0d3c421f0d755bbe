"""Small data sets in the formats of the real ones, and how the tests load them."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedopt.train import data
from fusedopt.train.data import DataError, Splits


def load(spec: str, root: Path, **arguments: Any) -> Splits:
    return data.load_data(spec, root=root, **({"seed": 0} | arguments))


def error_of(spec: str, root: Path, **arguments: Any) -> str:
    """The message with which a data set is refused."""
    with pytest.raises(DataError) as info:
        load(spec, root, **arguments)
    return str(info.value)


def everything(part: Any) -> list[tuple[bytes, int]]:
    """A data set's images and labels, as values that can be compared."""
    return [(image.numpy().tobytes(), label) for image, label in part]


class Python2Pickler(pickle._Pickler):
    """Writes byte strings as Python 2 did, which wrote the archives."""

    def save_bytes(self, obj: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(obj)) + obj)

    dispatch = pickle._Pickler.dispatch | {bytes: save_bytes}


def python2_pickle(content: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")


def archive(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def cifar_batch(seed: int, count: int, classes: int, key: bytes) -> dict[bytes, Any]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    return {b"data": pixels, key: [i % classes for i in range(count)], b"batch_label": b"testing"}


def cifar10_members() -> dict[str, bytes]:
    names = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5")
    members = {
        f"cifar-10-batches-py/{name}": python2_pickle(cifar_batch(i, 40, 10, b"labels"))
        for i, name in enumerate((*names, "test_batch"))
    }
    classes = [f"class {i}".encode() for i in range(10)]
    meta = {b"label_names": classes, b"num_vis": 3072}
    return members | {
        "cifar-10-batches-py/readme.html": b"<html>",
        "cifar-10-batches-py/batches.meta": python2_pickle(meta),
    }


CIFAR10 = "cifar-10-python.tar.gz"


def idx(values: np.ndarray) -> bytes:
    header = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.tobytes()


def mnist_files() -> dict[str, bytes]:
    draw = np.random.default_rng(0)
    files = {}
    for part, count in (("train", 200), ("t10k", 30)):
        images = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        files[f"{part}-images-idx3-ubyte"] = idx(images)
        files[f"{part}-labels-idx1-ubyte"] = idx(np.arange(count, dtype=np.uint8) % 10)
    return files
