"""Formats of images: all that Pillow decodes, brought to 8 bits, and files that are none."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("PIL", reason="the training script needs fusedopt[train]")

from PIL import Image, features
from test_train_folder import images_of
from train_folder_files import write_folder, write_image

from fusedopt.train.data import DataError, read_image
from fusedopt.train.data.layout import find
from fusedopt.train.data.scan import suffixes


def test_files_that_are_no_images_are_counted(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    for i in range(10):
        (root / "cat" / f"{i}.TXT").touch()
    for name in ("cat/a.mp4", "dog/deep/b.mp4", "README", "labels.csv", "dog/0001", "cat/x.eps"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    write_image(root / "lost.png")
    first, second = find(root).remarks
    assert first == (
        "16 files are no images that Pillow reads: 10 .txt, 2 .mp4, 2 without an ending, 1 .csv,"
        " 1 .eps"
    )
    assert second == "not read, because in no class's folder: 1 image, lost.png"


def test_all_that_pillow_reads_is_taken(tmp_path: Path) -> None:
    """Under every ending that it writes, too; but not what it can't decode by itself."""
    assert {".jpg", ".jfif", ".jpe", ".tif", ".webp", ".mpo", ".ppm", ".jp2"} <= suffixes()
    assert not {".eps", ".ps", ".mpg", ".h5", ".wmf", ".pdf"} & suffixes()
    image = Image.new("RGB", (32, 32), (200, 20, 20))
    written = []
    for suffix, name in sorted(Image.registered_extensions().items()):
        path = tmp_path / "cat" / f"x{suffix.upper() if len(suffix) % 2 else suffix}"
        path.parent.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        if suffix in suffixes() and name in Image.SAVE and name not in ("XBM", "MSP", "IM"):
            try:
                image.save(buffer, name)
            except (OSError, ValueError, KeyError):
                continue
            path.write_bytes(buffer.getvalue())
            written.append(path)
    write_folder(tmp_path, 1, ("dog",))
    assert {path.name for path in written} <= {Path(name).name for name in images_of(tmp_path)}
    assert len(written) > 20
    for path in written:
        mean = read_image(path, 8).float().mean((1, 2))
        assert torch.allclose(mean, torch.tensor([200.0, 20.0, 20.0]), atol=12), path
    if features.check("avif"):
        assert any(path.suffix.lower() == ".avif" for path in written)


def written(image: Image.Image, path: Path, **options: object) -> list[int]:
    """Pixels of an image of 1x3 pixels that was saved and read."""
    image.save(path, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = read_image(path, image.height, 1)
    return pixels.flatten().tolist()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_gray_of_16_bits_is_scaled(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 40_000], [65_535, 128, 129], [32_896, 65_407, 65_406]], np.uint16)
    expected = [0, 1, 156, 255, 0, 1, 128, 255, 254]
    assert written(Image.fromarray(values), tmp_path / f"x{suffix}") == expected
    rgb = read_image(tmp_path / f"x{suffix}", 3)
    assert rgb.shape == (3, 3, 3) and rgb[2].flatten().tolist() == expected
    big_endian = Image.frombytes("I;16B", (3, 3), values.astype(">u2").tobytes())
    assert written(big_endian, tmp_path / "big.tif") == expected


def test_gray_of_16_bits_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    values = np.array([[0, 65_535], [257, 514]], np.uint16)
    assert written(Image.fromarray(values), tmp_path / "x.png", exif=exif) == [2, 1, 255, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 1], [0.5, 0.25]], np.float32), [0, 255, 128, 64]),
        (np.array([[0, 65_535], [257, 514]], np.int32), [0, 255, 1, 2]),
        (np.array([[0, 300.0], [1, 1]], np.float32), "has values from 0 to 300, and must have"),
        (np.array([[0, np.nan], [1, 1]], np.float32), "has values from nan to nan, and must"),
        (np.array([[-5, 70_000], [1, 1]], np.int32), "has values from -5 to 70000, and must have"),
    ],
)
def test_values_of_32_bits(tmp_path: Path, values: np.ndarray, expected: object) -> None:
    path = tmp_path / "x.tif"
    if isinstance(expected, list):
        assert written(Image.fromarray(values), path) == expected
    else:
        Image.fromarray(values).save(path)
        with pytest.raises(DataError, match=f"^{path} {expected}"):
            read_image(path, 2)


def test_modes_of_pillow(tmp_path: Path) -> None:
    """Palettes with transparency, CMYK, two levels, transparency, and the first frame of many."""
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 120, 120, 120, 9, 9, 9])
    path = tmp_path / "x.png"
    assert written(palette, path, transparency=b"\x00\x80") == [120] * 4
    assert written(palette, path, transparency=1) == [120] * 4
    assert written(Image.new("1", (2, 2), 1), path) == [255] * 4
    assert written(Image.new("LA", (2, 2), (77, 0)), path) == [77] * 4
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    red = read_image(tmp_path / "x.jpg", 1).flatten().tolist()
    assert red[0] > 240 and max(red[1:]) < 15
    frames = [Image.new("L", (4, 4), value) for value in (10, 200, 30)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "x.gif", 1).flatten().tolist() == [10] * 3
