"""Folders of small images, for tests of the training script."""

from __future__ import annotations

import zlib
from pathlib import Path

from PIL import Image

# With a schedule of which more epochs change nothing.
SMALL_IMAGES = ("--image-size", 16, "--batch-size", 8, "--augment", "none",
                "--scheduler", "exponential")  # fmt: skip


def write_image(path: Path) -> None:
    """Writes an image of 16x16 pixels in colours that its name decides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = zlib.crc32(path.name.encode()) & 0xFFFFFF, 0 if "cat" in str(path) else 255
    image = Image.new("RGB", (16, 16), (colour[0] & 255, colour[0] >> 16, colour[1]))
    image.putpixel((3, 5), (255, 255, 255))
    image.save(path)


def write_folder(root: Path, count: int = 10, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Writes so many images of each class, 0.png and on, and returns the folder."""
    for name in classes:
        for i in range(count):
            write_image(root / name / f"{i}.png")
    return root


def cut_off(path: Path) -> None:
    """Leaves the header and some of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
