"""The training script's data: splits, loaders, and files of each format, damaged ones too."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import pickle
import struct
import tarfile
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
from torch import Tensor

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("PIL", reason="the training script needs fusedopt[train]")

from PIL import Image

from fusedopt.train import data
from fusedopt.train.data import DataError, Splits, cifar, mnist
from fusedopt.train.data.download import Published


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


# --- splits -----------------------------------------------------------------------------------


def test_split_is_disjoint_complete_and_stratified() -> None:
    labels = [i % 10 for i in range(600)] + [0] * 200
    split = data.split_indices(labels, seed=3)
    assert sorted(sum(split, [])) == list(range(len(labels)))
    for part, share in zip(split, (0.7, 0.1, 0.2), strict=True):
        assert len(part) == share * len(labels)
        count = Counter(labels[i] for i in part)
        assert all(abs(count[c] - share * labels.count(c)) <= 1 for c in range(10))
    assert split == data.split_indices(labels, seed=3)
    assert split.test != data.split_indices(labels, seed=4).test
    assert data.split_indices(labels, 3, test=0).test == []


def test_digits(tmp_path: Path) -> None:
    splits = load("digits", tmp_path)
    parts = splits.train, splits.validation, splits.test
    assert [len(part) for part in parts] == [1257, 180, 360]
    assert (splits.in_channels, splits.image_size) == (1, 16)
    assert splits.classes == tuple("0123456789")
    for part in parts:
        image, label = part[0]
        assert image.shape == (1, 16, 16) and image.dtype == torch.uint8 and type(label) is int
        assert part.images.min() == 0 and part.images.max() == 255
        assert set(part.labels.tolist()) == set(range(10))
    pixels = splits.train.images.double() / 255
    assert splits.mean == pytest.approx([pixels.mean().item()], rel=1e-12)
    assert splits.std == pytest.approx([pixels.std(correction=0).item()], rel=1e-12)
    assert load("digits", tmp_path, image_size=8).train[0][0].shape == (1, 8, 8)
    assert everything(load("digits", tmp_path).test) == everything(splits.test)
    assert everything(load("digits", tmp_path, seed=1).test) != everything(splits.test)


def test_some_classes_and_few_images_of_each(tmp_path: Path) -> None:
    whole = load("digits", tmp_path)
    few = load("digits", tmp_path, classes=[5, 6, 7, 9, 8], per_class=20)
    assert few.classes == tuple("56798")
    assert Counter(few.train.labels.tolist()) == dict.fromkeys(range(5), 20)
    # The parts are those of the whole data set: none gets what another had.
    for name in ("train", "validation", "test"):
        ours = {(image, int(few.classes[label])) for image, label in everything(getattr(few, name))}
        assert ours <= set(everything(getattr(whole, name)))
    assert len(few.test) == sum(whole.test.labels >= 5)
    again = load("digits", tmp_path, classes=[5, 6, 7, 9, 8], per_class=20)
    assert everything(few.train) == everything(again.train)


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        ("imagenet", {}, "there is no data set 'imagenet'; there are digits, cifar10, cifar100,"),
        ("digits", {"classes": [3]}, "classes: at least two different ones are needed, not [3]"),
        ("digits", {"classes": [3, 3]}, "classes: at least two different ones are needed"),
        ("digits", {"classes": [3, 10]}, "classes: 10 is not among 0 to 9"),
        ("digits", {"per_class": 0}, "per_class must be at least 1, not 0"),
        ("digits", {"per_class": 500}, "per_class is 500, but class 0 has 12"),
        ("digits", {"image_size": 0}, "image_size must be at least 1, not 0"),
    ],
)
def test_bad_arguments(tmp_path: Path, spec: str, arguments: dict, message: str) -> None:
    assert message in error_of(spec, tmp_path, **arguments)


# --- loaders ----------------------------------------------------------------------------------


def test_a_loaders_order_is_its_generators_alone(tmp_path: Path) -> None:
    part = load("digits", tmp_path).validation

    def epochs(workers: int, seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        loader = data.make_loader(part, 64, shuffle=True, workers=workers, generator=generator)
        return [images for _ in range(2) for images, _ in loader]

    first = epochs(0, 1)
    assert [len(batch) for batch in first] == [64, 64, 52] * 2
    assert not torch.equal(first[0], first[3])
    assert all(map(torch.equal, first, epochs(2, 1)))
    assert not torch.equal(first[0], epochs(0, 2)[0])

    images, labels = next(iter(data.make_loader(part, 10, shuffle=False, workers=0)))
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert torch.equal(images, part.images[:10]) and torch.equal(labels, part.labels[:10])
    assert len(data.make_loader(part, 64, shuffle=True, workers=0, drop_last=True)) == 2


# --- CIFAR ------------------------------------------------------------------------------------


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


# --- MNIST ------------------------------------------------------------------------------------


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


# --- downloads --------------------------------------------------------------------------------


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


# --- folders ----------------------------------------------------------------------------------


def write_images(folder: Path, count: int, colour: tuple[int, int, int], suffix: str) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (24 + i, 16), (*colour[:2], i)).save(folder / f"{i}{suffix}")


def test_folder_without_parts(tmp_path: Path) -> None:
    write_images(tmp_path / "red", 20, (255, 0, 0), ".png")
    write_images(tmp_path / "green" / "more", 20, (0, 255, 0), ".PNG")
    (tmp_path / "red" / "notes.txt").write_text("not an image")
    (tmp_path / "red" / ".hidden.png").write_text("not an image either")
    (tmp_path / ".cache").mkdir()
    spec = f"folder:{tmp_path}"
    splits = load(spec, tmp_path, image_size=8)
    assert splits.classes == ("green", "red") and splits.in_channels == 3
    parts = splits.train, splits.validation, splits.test
    assert [len(part) for part in parts] == [28, 4, 8]
    images = [everything(part) for part in parts]
    assert len(set(sum(images, []))) == 40
    for part in parts:
        assert Counter(part.labels.tolist()) == {0: len(part) // 2, 1: len(part) // 2}
        for image, label in part:
            assert image.shape == (3, 8, 8) and image.dtype == torch.uint8
            expected = torch.tensor([255, 0] if splits.classes[label] == "red" else [0, 255])
            assert torch.equal(image[:2], expected.byte().view(2, 1, 1).expand(2, 8, 8))
    assert [everything(part) for part in (splits.train, splits.test)] == [
        everything(part)
        for again in [load(spec, tmp_path, image_size=8)]
        for part in (again.train, again.test)
    ]
    assert splits.mean[0] == pytest.approx(0.5) and splits.std[0] == pytest.approx(0.5)
    assert load(spec, tmp_path).image_size == 224


def test_folder_with_parts(tmp_path: Path) -> None:
    for part, count in (("train", 10), ("val", 3), ("test", 4)):
        write_images(tmp_path / part / "a", count, (9, 9, 9), ".jpg")
        write_images(tmp_path / part / "b", count, (200, 9, 9), ".bmp")
    splits = load(f"folder:{tmp_path}", tmp_path, image_size=4)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [20, 6, 8]
    assert all(Path(path).parts[-3] == "test" for path in splits.test.paths)

    (tmp_path / "val").rename(tmp_path / "kept")
    splits = load(f"folder:{tmp_path}", tmp_path, image_size=4)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [18, 2, 8]
    assert not set(splits.train.paths) & set(splits.validation.paths)


def test_images_are_upright_square_and_of_8_bits(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    pixels = np.zeros((4, 8), np.uint8)
    pixels[:, 2:6] = 100
    pixels[0, 2:6] = 200
    Image.fromarray(pixels).save(path)
    expected = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    expected[:, 0] = 200
    assert torch.equal(data.read_image(path, 4), expected)
    assert torch.equal(data.read_image(path, 4, in_channels=1), expected[:1])

    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(path, exif=exif)
    assert torch.equal(data.read_image(path, 4), expected.flip(1, 2))
    Image.new("RGBA", (3, 3), (10, 20, 30, 0)).save(path)
    assert data.read_image(path, 1).flatten().tolist() == [10, 20, 30]


def test_bad_folders_are_named(tmp_path: Path) -> None:
    spec = f"folder:{tmp_path / 'x'}"
    assert error_of(spec, tmp_path) == f"{spec}: there is no such folder"
    (tmp_path / "x").mkdir()
    assert "has 0 folders, and there must be one for each class" in error_of(spec, tmp_path)
    write_images(tmp_path / "x" / "a", 3, (1, 1, 1), ".png")
    (tmp_path / "x" / "b").mkdir()
    assert error_of(spec, tmp_path).startswith(f"{tmp_path / 'x' / 'b'} has no images (.bmp, ")
    (tmp_path / "x" / "b" / "1.png").write_bytes(b"")
    assert "4 images of 2 classes are too few to put 20% of them aside" in error_of(spec, tmp_path)

    for part in ("train", "val", "validation"):
        write_images(tmp_path / "y" / part / "a", 3, (1, 1, 1), ".png")
        write_images(tmp_path / "y" / part / "b", 3, (1, 1, 1), ".png")
    assert "has val and validation: which?" in error_of(f"folder:{tmp_path / 'y'}", tmp_path)
    (tmp_path / "y" / "validation").rename(tmp_path / "y" / "test")
    (tmp_path / "y" / "test" / "a").rename(tmp_path / "y" / "test" / "c")
    assert "/test/c: the training images have no such class" in error_of(
        f"folder:{tmp_path / 'y'}", tmp_path
    )


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("name", "content"),
    [("cut.png", None), ("cut.jpg", None), ("text.png", b"not an image"), ("empty.gif", b"")],
)
def test_a_damaged_image_is_named_in_one_line(
    tmp_path: Path, workers: int, name: str, content: bytes | None
) -> None:
    for label in ("a", "b"):
        write_images(tmp_path / label, 20, (1, 1, 1), ".png")
    splits = load(f"folder:{tmp_path}", tmp_path, image_size=8)
    path = Path(splits.test.paths[1]).with_name(name)
    if content is None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        content = path.read_bytes()[:3000]
    path.write_bytes(content)
    part = replace(splits.test, paths=(*splits.test.paths[:-1], str(path)))
    loader = data.make_loader(part, 4, shuffle=False, workers=workers)
    with pytest.raises(DataError) as info:
        list(loader)
    assert str(info.value).startswith(f"{path} is damaged, or no image: ")
    assert "\n" not in str(info.value)
