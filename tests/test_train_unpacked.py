"""CIFAR that is unpacked already, and MNIST as Kaggle has it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("PIL", reason="the training script needs fusedopt[train]")

from test_train_archives import Evil
from train_data_files import (
    CIFAR10,
    archive,
    cifar10_members,
    cifar_batch,
    error_of,
    everything,
    load,
    mnist_files,
    python2_pickle,
)

from fusedopt.train.data import download


def unpack(root: Path, members: dict[str, bytes]) -> Path:
    for name, content in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_cifar10_unpacked(tmp_path: Path) -> None:
    """In the data folder, as that folder itself, or unzipped by a browser; the archive is first."""
    (tmp_path / "packed").mkdir()
    packed, members = tmp_path / "packed" / CIFAR10, cifar10_members()
    packed.write_bytes(archive(members))
    expected = load("cifar10", packed.parent)
    root = unpack(tmp_path / "unpacked", members)
    (tmp_path / "tar").mkdir()
    plain = gzip.decompress(packed.read_bytes())
    (tmp_path / "tar" / CIFAR10.removesuffix(".gz")).write_bytes(plain)
    for place in (root, root / "cifar-10-batches-py", tmp_path / "tar"):
        splits = load("cifar10", place, download=place == root)
        assert everything(splits.train) == everything(expected.train)
        assert everything(splits.test) == everything(expected.test)
        assert splits.classes == expected.classes
    (root / CIFAR10).write_bytes(b"damaged")
    assert error_of("cifar10", root).startswith(f"{root / CIFAR10} is damaged")


def test_cifar100_unpacked(tmp_path: Path) -> None:
    def batch(seed: int, count: int) -> bytes:
        return python2_pickle(cifar_batch(seed, count, 100, b"fine_labels"))

    names = [f"c{i}".encode() for i in range(100)]
    files = {"meta": python2_pickle({b"fine_label_names": names}), "test": batch(0, 100)}
    root = unpack(tmp_path / "cifar-100-python", files | {"train": batch(1, 1000)})
    for place in (tmp_path, root):
        assert len(load("cifar100", place).test) == 100


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("data_batch_3", None, "cifar-10-batches-py has no data_batch_3"),
        ("batches.meta", None, "cifar-10-batches-py has no batches.meta"),
        ("data_batch_2", b"", "data_batch_2 can't be read"),
        ("data_batch_2", python2_pickle(Evil()), "it asks for __builtin__.print"),
        ("test_batch", python2_pickle([1]), "test_batch is not a dictionary"),
        ("batches.meta", python2_pickle({}), "batches.meta has no label_names"),
    ],
)
def test_damaged_files_of_cifar(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    content: bytes | None,
    message: str,
) -> None:
    root = unpack(tmp_path, cifar10_members()) / "cifar-10-batches-py"
    (root / file).unlink()
    if content is not None:
        (root / file).write_bytes(content)
    text = error_of("cifar10", tmp_path)
    assert text.startswith(f"{root} is damaged or another file: ") and message in text
    assert "run" not in capsys.readouterr().out


def test_other_folders_are_not_taken_for_cifar(tmp_path: Path) -> None:
    """CIFAR-100's files are called train, test and meta."""
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    (tmp_path / "meta").touch()
    (tmp_path / "cifar-100-python").mkdir()
    assert error_of("cifar100", tmp_path).startswith(f"cifar100 is not in {tmp_path}. --download")


KAGGLE = {name: name.replace("-idx", ".idx") for name in mnist_files()}


@pytest.mark.parametrize("place", ["", "MNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("form", ["{kaggle}", "{name}/{name}", "{name}/{kaggle}", "{name}"])
def test_mnist_under_kaggles_names(tmp_path: Path, place: str, suffix: str, form: str) -> None:
    for name, content in mnist_files().items():
        path = tmp_path / place / (form.format(name=name, kaggle=KAGGLE[name]) + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if suffix else content)
    splits = load("mnist", tmp_path)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [180, 20, 30]
    assert splits.test.images.numpy().tobytes() == mnist_files()["t10k-images-idx3-ubyte"][16:]


def test_both_forms_at_once(tmp_path: Path) -> None:
    """Kaggle's archive has each file twice: as a file, and in a folder with the usual name."""
    for name, content in mnist_files().items():
        for path in (tmp_path / KAGGLE[name], tmp_path / name / name):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    assert len(load("mnist", tmp_path).test) == 30
    assert len(load("fashion-mnist", tmp_path).test) == 30


def test_what_is_missing_is_said_and_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in mnist_files().items():
        (tmp_path / KAGGLE[name]).write_bytes(content)
    missing = tmp_path / KAGGLE["t10k-labels-idx1-ubyte"]
    content = missing.read_bytes()
    missing.unlink()
    lines = error_of("mnist", tmp_path).splitlines()
    assert lines[0].startswith(f"mnist is not in {tmp_path / 'MNIST' / 'raw'}.") and len(lines) == 5
    fetched = []

    def fetch(file: download.Published, folder: Path) -> None:
        fetched.append(file.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).write_bytes(gzip.compress(mnist_files()[file.name[:-3]]))

    monkeypatch.setattr(download, "fetch", fetch)
    assert len(load("mnist", tmp_path, download=True).test) == 30
    assert sorted(fetched) == sorted(f"{name}.gz" for name in KAGGLE)
    missing.write_bytes(content)


def test_published_files_are_checked_and_others_kept(tmp_path: Path) -> None:
    root = tmp_path / "MNIST" / "raw"
    root.mkdir(parents=True)
    for name, content in mnist_files().items():
        (root / KAGGLE[name]).write_bytes(content)
    assert len(load("mnist", tmp_path, download=True).test) == 30
    first = next(iter(KAGGLE))
    (root / f"{first}.gz").write_bytes(gzip.compress(mnist_files()[first]))
    assert "its md5 is " in error_of("mnist", tmp_path, download=True)
