"""MNIST and Fashion-MNIST, read from their idx files."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fusedopt.train.data.download import Published, find, require
from fusedopt.train.data.images import DataError, ImageSet

UNSIGNED_BYTE = 8  # the type of the values, in idx's third byte


@dataclass(frozen=True)
class Mnist:
    """Where four files are, on the web and below the folder for data, and the classes."""

    url: str
    folder: str
    md5: dict[str, str]
    classes: tuple[str, ...]

    def files(self) -> list[Published]:
        """Returns the files as published."""
        return [Published(f"{self.url}{name}.gz", md5) for name, md5 in self.md5.items()]


IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"

# The folders are those where torchvision puts the files. Address and checksums of MNIST:
# torchvision/datasets/mnist.py, version 0.28 (the author's own server asks for a password);
# of Fashion-MNIST: https://github.com/zalandoresearch/fashion-mnist
MNIST = {
    "mnist": Mnist(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "MNIST/raw",
        {
            f"train-{IMAGES}": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            f"train-{LABELS}": "d53e105ee54ea40749a09fcbcd1e9432",
            f"t10k-{IMAGES}": "9fb629c4189551a2d022fa330f9573f3",
            f"t10k-{LABELS}": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        tuple(map(str, range(10))),
    ),
    "fashion-mnist": Mnist(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "FashionMNIST/raw",
        {
            f"train-{IMAGES}": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            f"train-{LABELS}": "25c81989df183df01b3e8a0aad5dffbe",
            f"t10k-{IMAGES}": "bef4ecab320f06d8554ea6380940ec79",
            f"t10k-{LABELS}": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
         "Ankle boot"),
    ),
}  # fmt: skip


def load(name: str, root: Path, download: bool) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """Returns training set, test set, and names of the classes.

    Args:
        name: "mnist" or "fashion-mnist".
        root: the folder in which MNIST/raw or FashionMNIST/raw has the files, gzipped or not; or
            has them itself.
        download: fetch what is missing.

    Raises:
        DataError: a file is missing, damaged, or not what it should be.
    """
    source = MNIST[name]
    folders = [root / source.folder, root]
    folder = next((f for f in folders if all(_find(f, file) for file in source.md5)), folders[0])
    # What is there as published is checked before a download, what isn't there is missing.
    published = [
        file
        for file, own in zip(source.files(), source.md5, strict=True)
        if _find(folder, own) in (None, folder / file.name)
    ]
    require(name, folder, published, download)
    files = {file: _find(folder, file) for file in source.md5}
    train, test = (_pair(files, part, len(source.classes)) for part in ("train", "t10k"))
    return train, test, source.classes


def _find(folder: Path, name: str) -> Path | None:
    """Returns where a file is, gzipped or not; None where it isn't.

    Kaggle's is called train-images.idx3-ubyte, or lies in a folder with the usual name.
    """
    dotted = name.replace("-idx", ".idx")
    for candidate in (name, dotted, f"{name}/{name}", f"{dotted}/{dotted}", f"{name}/{dotted}"):
        path = find(folder, f"{candidate}.gz")
        if path is not None:
            return path
    return None


def _pair(files: Mapping[str, Path], part: str, classes: int) -> ImageSet:
    image_path, label_path = (files[f"{part}-{x}"] for x in (IMAGES, LABELS))
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if len(images) != len(labels):
        raise DataError(f"{image_path} has {len(images)} images, {label_path} {len(labels)} labels")
    if len(images) == 0 or images.shape[1] != images.shape[2]:
        raise DataError(f"{image_path} has no square images: its shape is {tuple(images.shape)}")
    if labels.max() >= classes:
        raise DataError(f"{label_path} has the label {int(labels.max())}; there are {classes}")
    return ImageSet(images.unsqueeze(1), labels.to(torch.int64))


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Reads an idx file of unsigned bytes, gzipped where its name ends so.

    Args:
        path: the file.
        dimensions: how many the tensor has to have.

    Returns:
        A uint8 tensor.

    Raises:
        DataError: the file can't be read, is cut off or too long, or holds something else.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    header = struct.pack(">HBB", 0, UNSIGNED_BYTE, dimensions)
    start = len(header) + 4 * dimensions
    if content[: len(header)] != header or len(content) < start:
        raise DataError(f"{path} is not an idx file of unsigned bytes in {dimensions} dimensions")
    shape = struct.unpack_from(f">{dimensions}I", content, len(header))
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{path} is damaged: {len(content) - start:,} bytes for a shape of {shape}, which takes"
            f" {math.prod(shape):,}"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())
