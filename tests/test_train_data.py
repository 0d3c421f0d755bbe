"""The training script's data: splits, loaders, and folders of images."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("PIL", reason="the training script needs fusedopt[train]")

from PIL import Image, ImageOps
from train_data_files import error_of, everything, load

from fusedopt.train import data
from fusedopt.train.data import DataError


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


def test_the_data_folder_may_be_named_by_a_string(tmp_path: Path) -> None:
    assert "--download fetches it" in error_of("cifar10", str(tmp_path))  # type: ignore[arg-type]


def test_a_folders_size_is_said(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_images(tmp_path / "x" / name, 10, (1, 1, 1), ".png")
    for size, remarks in ((None, ["  scaled to 224x224 pixels: no image size is given"]), (8, [])):
        said: list[str] = []
        load(f"folder:{tmp_path / 'x'}", tmp_path, image_size=size, say=said.append)
        assert said[1:] == remarks


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


def test_images_are_upright_and_square(tmp_path: Path) -> None:
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


def test_whatever_pillow_raises_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage in a JPEG's Exif may become a struct.error."""

    def fail(image: Image.Image) -> Image.Image:
        raise struct.error("required argument is not an integer")

    path = tmp_path / "1.jpg"
    Image.new("RGB", (4, 4)).save(path)
    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    with pytest.raises(DataError, match=f"{path} is damaged, or no image: required argument"):
        data.read_image(path, 4)


def test_bad_folders_are_named(tmp_path: Path) -> None:
    spec = f"folder:{tmp_path / 'x'}"
    assert error_of(spec, tmp_path) == f"there is no folder {tmp_path / 'x'}"
    (tmp_path / "x").mkdir()
    assert "has 0 folders, and there must be one for each class" in error_of(spec, tmp_path)
    write_images(tmp_path / "x" / "a", 3, (1, 1, 1), ".png")
    (tmp_path / "x" / "b").mkdir()
    assert error_of(spec, tmp_path) == f"{tmp_path / 'x' / 'b'} has no images that Pillow reads"
    (tmp_path / "x" / "b" / "1.png").write_bytes(b"")
    assert error_of(spec, tmp_path) == (
        "20% of the images can't be put aside, each class in the same proportion: the class b has 1"
        " image, and each class needs 3"
    )
    for name in ("a", "b", "c", "d"):
        write_images(tmp_path / "few" / name, 3, (1, 1, 1), ".png")
    assert error_of(f"folder:{tmp_path / 'few'}", tmp_path) == (
        "20% of the images can't be put aside, each class in the same proportion: there are 12, and"
        " 4 classes need 31"
    )
    assert error_of("folder:", tmp_path) == "'folder:' names no folder; the form is folder:PATH"

    for part in ("train", "val", "validation"):
        write_images(tmp_path / "y" / part / "a", 3, (1, 1, 1), ".png")
        write_images(tmp_path / "y" / part / "b", 3, (1, 1, 1), ".png")
    assert "has val and validation: which?" in error_of(f"folder:{tmp_path / 'y'}", tmp_path)
    (tmp_path / "y" / "validation").rename(tmp_path / "y" / "test")
    (tmp_path / "y" / "test" / "a").rename(tmp_path / "y" / "test" / "c")
    assert "/test/c: the training images have no such class" in error_of(
        f"folder:{tmp_path / 'y'}", tmp_path
    )


@pytest.mark.parametrize(
    ("name", "content", "workers"),
    [
        ("cut.png", None, 0),
        ("cut.jpg", None, 0),
        ("text.png", b"not an image", 0),
        ("empty.gif", b"", 1),
    ],
)
def test_a_damaged_image_is_named_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, workers: int
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
