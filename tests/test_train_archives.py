"""The training script's CIFAR and MNIST: files in the real formats, damaged ones, downloads."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("PIL", reason="the training script needs fusedopt[train]")

from train_data_files import (
    CIFAR10,
    archive,
    cifar10_members,
    cifar_batch,
    error_of,
    everything,
    idx,
    load,
    mnist_files,
    python2_pickle,
)

from fusedopt.train.data import cifar, mnist
from fusedopt.train.data.download import Published


def test_cifar10(tmp_path: Path) -> None:
    (tmp_path / CIFAR10).write_bytes(archive(cifar10_members()))
    splits = load("cifar10", tmp_path)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [180, 20, 40]
    assert (splits.in_channels, splits.image_size) == (3, 32)
    assert splits.classes == tuple(f"class {i}" for i in range(10))
    test = cifar_batch(5, 40, 10, b"labels")
    assert torch.equal(splits.test.images.flatten(1), torch.from_numpy(test[b"data"]))
    assert splits.test.labels.tolist() == test[b"labels"]
    batches = [cifar_batch(i, 40, 10, b"labels") for i in range(5)]
    known = {
        (row.tobytes(), label)
        for batch in batches
        for row, label in zip(batch[b"data"], batch[b"labels"], strict=True)
    }
    train, validation = everything(splits.train), everything(splits.validation)
    assert set(train) | set(validation) == known and len(known) == 200
    assert Counter(label for _, label in validation) == dict.fromkeys(range(10), 2)
    pixels = splits.train.images.double() / 255
    assert splits.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), rel=1e-12)
    large = load("cifar10", tmp_path, image_size=48)
    assert large.image_size == 48 and large.test[0][0].shape == (3, 48, 48)


def test_cifar100(tmp_path: Path) -> None:
    def batch(seed: int, count: int) -> bytes:
        content = cifar_batch(seed, count, 100, b"fine_labels")
        return python2_pickle(content | {b"coarse_labels": [0] * count})

    names = [f"c{i}".encode() for i in range(100)]
    members = {
        "cifar-100-python/meta": python2_pickle({b"fine_label_names": names}),
        "cifar-100-python/test": batch(0, 100),
        "cifar-100-python/train": batch(1, 1000),
    }
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(archive(members))
    splits = load("cifar100", tmp_path)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [900, 100, 100]
    assert splits.classes[99] == "c99" and splits.test[42][1] == 42


class Evil:
    """What a forged archive would hold: a call of anything when it is read."""

    def __reduce__(self) -> tuple:
        return (print, ("run",))


@cache
def damaged_archives() -> dict[str, tuple[bytes, str]]:
    """Contents of a CIFAR-10 archive, and what has to be said of each."""
    members = cifar10_members()
    whole = archive(members)
    first = "cifar-10-batches-py/data_batch_1"
    batch = cifar_batch(0, 40, 10, b"labels")

    def with_first(content: object) -> bytes:
        return archive(members | {first: python2_pickle(content)})

    return {
        "empty": (b"", "empty file"),
        "no archive": (b"<html>not found</html>", "Not a gzipped file"),
        "no tar": (gzip.compress(b"x" * 2000), "invalid header"),
        "cut in the middle": (whole[: len(whole) // 2], "ended before"),
        "cut at the end": (whole[:-4], "ended before"),
        "a bit flipped": (whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:], "CRC check failed"),
        "a member less": (
            archive({name: members[name] for name in members if name != first}),
            "it has no cifar-10-batches-py/data_batch_1",
        ),
        "a pickle cut off": (
            archive(members | {first: members[first][:-9]}),
            "data_batch_1 can't be read",
        ),
        "a forged pickle": (with_first(Evil()), "it asks for __builtin__.print"),
        "a list": (with_first([1]), "data_batch_1 is not a dictionary"),
        "other data": (with_first(batch | {b"data": [1, 2]}), "no array of bytes named data"),
        "other pixels": (with_first(batch | {b"data": batch[b"data"][:, 1:]}), "has 3071 bytes"),
        "fewer labels": (with_first(batch | {b"labels": [1]}), "no list labels with 40 entries"),
        "other labels": (with_first(batch | {b"labels": [10] * 40}), "is not one of 10"),
        "no names": (
            archive(members | {"cifar-10-batches-py/batches.meta": python2_pickle({})}),
            "batches.meta has no label_names",
        ),
    }


@pytest.mark.parametrize("damage", damaged_archives())
def test_damaged_archives_are_named(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content, reason = damaged_archives()[damage]
    path = tmp_path / CIFAR10
    path.write_bytes(content)
    message = error_of("cifar10", tmp_path)
    assert message.startswith(f"{path} is damaged or another file: ")
    assert reason in message and "\n" not in message
    assert "run" not in capsys.readouterr().out
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("spec", "folder"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")]
)
@pytest.mark.parametrize("gzipped", [True, False])
def test_mnist(tmp_path: Path, spec: str, folder: str, gzipped: bool) -> None:
    place = tmp_path / folder
    place.mkdir(parents=True)
    for name, content in mnist_files().items():
        if gzipped:
            (place / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (place / name).write_bytes(content)
    splits = load(spec, tmp_path)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [180, 20, 30]
    assert (splits.in_channels, splits.image_size) == (1, 28)
    assert splits.classes[9] == {"mnist": "9", "fashion-mnist": "Ankle boot"}[spec]
    expected = mnist_files()["t10k-images-idx3-ubyte"][16:]
    assert splits.test.images.numpy().tobytes() == expected
    assert splits.test.labels.tolist() == [i % 10 for i in range(30)]


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (IMAGES, lambda x: x[:-1], "is damaged: 156,799 bytes for a shape of (200, 28, 28)"),
        (IMAGES, lambda x: x + b"0", "is damaged: 156,801 bytes"),
        (IMAGES, lambda x: b"", "is not an idx file of unsigned bytes in 3 dimensions"),
        (IMAGES, lambda x: x[:9], "is not an idx file of unsigned bytes in 3 dimensions"),
        (LABELS, lambda x: b"<html>" + x, "is not an idx file of unsigned bytes in 1 dimensions"),
        (LABELS, lambda x: idx(np.zeros(7, np.uint8)), "200 images"),
        (LABELS, lambda x: idx(np.full(200, 10, np.uint8)), "has the label 10; there are 10"),
        (IMAGES, lambda x: idx(np.zeros((200, 28, 27), np.uint8)), "has no square images"),
        (f"{IMAGES}.gz", lambda x: gzip.compress(x)[:-5], "is damaged: Compressed file ended"),
        (f"{IMAGES}.gz", lambda x: b"html", "is damaged: Not a gzipped file"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path: Path, name: str, damage: Any, message: str) -> None:
    place = tmp_path / "MNIST" / "raw"
    place.mkdir(parents=True)
    files = mnist_files()
    for whole, content in files.items():
        (place / whole).write_bytes(content)
    (place / name.removesuffix(".gz")).unlink()
    (place / name).write_bytes(damage(files[name.removesuffix(".gz")]))
    text = error_of("mnist", tmp_path)
    assert str(place / name) in text and message in text


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a web server on this machine, and the folder that it shows."""
    folder = tmp_path / "web"
    folder.mkdir()
    handler = partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", folder
        httpd.shutdown()
        thread.join()


def publish(monkeypatch: pytest.MonkeyPatch, server: tuple[str, Path], content: bytes) -> Path:
    """Puts a CIFAR-10 archive on the server; returns where."""
    url, folder = server
    md5 = hashlib.md5(content).hexdigest()
    source = cifar.CIFAR["cifar10"]
    source = replace(source, file=Published(f"{url}/{CIFAR10}", md5))
    monkeypatch.setitem(cifar.CIFAR, "cifar10", source)
    (folder / CIFAR10).write_bytes(content)
    return folder / CIFAR10


def test_missing_data_say_where_they_come_from_and_belong(tmp_path: Path) -> None:
    assert error_of("cifar100", tmp_path) == (
        f"cifar100 is not in {tmp_path}. --download fetches it; or put there:\n"
        "  https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
        " (md5 eb9058c3a382ffc7106e4002c42a8d85)"
    )
    place = tmp_path / "MNIST" / "raw"
    place.mkdir(parents=True)
    (place / "train-images-idx3-ubyte").write_bytes(b"")
    lines = error_of("mnist", tmp_path).splitlines()
    assert lines[0].startswith(f"mnist is not in {place}.") and len(lines) == 4
    assert lines[3].endswith("t10k-labels-idx1-ubyte.gz (md5 ec29112dd5afa0611ce80d1b7f02629c)")


def test_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[str, Path]
) -> None:
    published = publish(monkeypatch, server, archive(cifar10_members()))
    root = tmp_path / "new" / "data"
    first = load("cifar10", root, download=True)
    assert [path.name for path in root.iterdir()] == [CIFAR10]
    assert (root / CIFAR10).read_bytes() == published.read_bytes()
    published.unlink()  # what is there is not fetched again
    again = load("cifar10", root, download=True)
    assert everything(first.train) == everything(again.train)


def test_download_of_idx_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[str, Path]
) -> None:
    url, folder = server
    md5 = {}
    for name, content in mnist_files().items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        md5[name] = hashlib.md5((folder / f"{name}.gz").read_bytes()).hexdigest()
    source = mnist.Mnist(f"{url}/", "MNIST/raw", md5, mnist.MNIST["mnist"].classes)
    monkeypatch.setitem(mnist.MNIST, "mnist", source)
    assert len(load("mnist", tmp_path, download=True).test) == 30
    assert len(list((tmp_path / "MNIST" / "raw").iterdir())) == 4


def test_nothing_is_left_of_a_failed_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[str, Path]
) -> None:
    whole = archive(cifar10_members())
    published = publish(monkeypatch, server, whole)
    root = tmp_path / "data"

    published.write_bytes(whole[:-1000])
    message = error_of("cifar10", root, download=True)
    assert f"{CIFAR10} gave {len(whole) - 1000:,} bytes with md5 " in message
    assert message.endswith("nothing was kept") and list(root.iterdir()) == []

    published.unlink()
    message = error_of("cifar10", root, download=True)
    assert message.endswith("HTTP Error 404: File not found") and list(root.iterdir()) == []

    (root / CIFAR10).write_bytes(b"the user's own")
    message = error_of("cifar10", root, download=True)
    assert message.startswith(f"{root / CIFAR10} is damaged or another file: its md5 is ")
    assert (root / CIFAR10).read_bytes() == b"the user's own"

    (tmp_path / "file").write_bytes(b"")
    message = error_of("cifar10", tmp_path / "file", download=True)
    assert message == f"cannot make the folder {tmp_path / 'file'}: File exists"


def test_a_server_that_stops_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[str, Path]
) -> None:
    whole = archive(cifar10_members())
    publish(monkeypatch, server, whole)

    def half(self: Quiet, source: Any, target: Any) -> None:
        target.write(source.read(len(whole) // 2))

    monkeypatch.setattr(Quiet, "copyfile", half)
    message = error_of("cifar10", tmp_path / "data", download=True)
    assert f"gave {len(whole) // 2:,} bytes" in message or "cannot fetch" in message
    assert list((tmp_path / "data").iterdir()) == []
