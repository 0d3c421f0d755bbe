"""All images are looked at before training, and the command line says which can't be read."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("tensorboard", reason="the training script needs fusedopt[train]")
pytest.importorskip("PIL", reason="the training script needs fusedopt[train]")

from PIL import Image
from train_data_files import error_of, load
from train_folder_files import SMALL_IMAGES, cut_off, write_folder
from train_runs import no_chart, short_measurement, train  # noqa: F401

from fusedopt.train import main, world
from fusedopt.train.data import BadImages, check


def write_photo(path: Path) -> None:
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def damage(root: Path) -> dict[str, str]:
    """Makes an image of each kind of damage, and returns what is to be said of each."""
    (root / "cat" / "text.png").write_text("no image")
    (root / "cat" / "empty.jpg").touch()
    (root / "dog" / "nowhere.png").symlink_to("nothing.png")
    for name in ("cut.jpg", "cut.png", "cut.webp", "cut.tif", "cut.bmp"):
        write_photo(root / "dog" / name)
        cut_off(root / "dog" / name)
    said = {name: "is damaged, or no image: " for name in ("cat/text.png", "cat/empty.jpg")}
    said |= {f"dog/cut.{x}": "is damaged, or no image: " for x in ("jpg", "png", "webp", "tif")}
    said |= {"dog/cut.bmp": "is damaged", "dog/nowhere.png": "doesn't exist, and is a link that"}
    return said


def test_bad_images_are_named_before_training(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    said = damage(root)
    with pytest.raises(BadImages) as info:
        load(f"folder:{root}", tmp_path, image_size=8)
    first, *lines = str(info.value).splitlines()
    assert first == "8 of 28 images can't be read; --skip-bad-images leaves them out:"
    assert len(lines) == len(said)
    for line, (name, reason) in zip(lines, sorted(said.items()), strict=True):
        assert line.startswith(f"  {root / name} {reason}")
        assert "0x" not in line  # no object's address


def test_many_bad_images_are_counted(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", 30)
    for i in range(25):
        (root / "cat" / f"{i}.png").write_bytes(b"")
    lines = error_of(f"folder:{root}", tmp_path, image_size=8).splitlines()
    assert lines[0].startswith("25 of 60 images can't be read") and len(lines) == 22
    assert lines[-1] == "  and 5 more"


def test_bad_images_can_be_skipped(tmp_path: Path) -> None:
    """The others are where they would be with them."""
    root = write_folder(tmp_path / "data", 20)
    before = load(f"folder:{root}", tmp_path, image_size=8)
    bad = [before.train.names[3], before.validation.names[0], before.test.names[5]]
    for name in bad:
        cut_off(root / name)
    said: list[str] = []
    after = load(f"folder:{root}", tmp_path, image_size=8, skip_bad_images=True, say=said.append)
    assert said[1] == "3 of 40 images can't be read, and are left out:"
    assert [line.split()[0] for line in said[2:]] == sorted(str(root / name) for name in bad)
    for part in ("train", "validation", "test"):
        names = getattr(before, part).names
        assert getattr(after, part).names == [name for name in names if name not in bad]
    assert after.unused == tuple(sorted(bad))


def test_only_what_is_used_is_looked_at(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", 20, ("cat", "cow", "dog"))
    (root / "cow" / "3.png").write_bytes(b"")
    arguments = {"image_size": 8, "classes": [0, 2]}
    splits = load(f"folder:{root}", tmp_path, **arguments)
    few = load(f"folder:{root}", tmp_path, **arguments, per_class=2)
    assert set(few.unused) > set(splits.unused) == {f"cow/{i}.png" for i in range(20)}
    (root / set(few.unused).difference(splits.unused).pop()).write_bytes(b"")
    load(f"folder:{root}", tmp_path, **arguments, per_class=2)


def test_nothing_left(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    for i in range(10):
        (root / "dog" / f"{i}.png").write_bytes(b"")
    message = error_of(f"folder:{root}", tmp_path, image_size=8, skip_bad_images=True)
    assert message == "no training image of the class dog can be read"
    for i in range(10):
        (root / "cat" / f"{i}.png").write_bytes(b"")
    message = error_of(f"folder:{root}", tmp_path, image_size=8, skip_bad_images=True)
    assert message == "none of the 14 training images can be read"


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(tmp_path / "data")
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "3.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    lines = error_of(f"folder:{root}", tmp_path, image_size=8).splitlines()
    assert lines[1:] == [
        f"  {root}/{name}/3.png can't be read: Permission denied" for name in ("cat", "dog")
    ]


def test_processes_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(tmp_path / "data", 4)
    (root / "cat" / "3.png").write_bytes(b"")
    paths = [str(path) for path in sorted(root.rglob("*.png"))]
    alone = check.look_at(paths)
    found, seen = [], []
    monkeypatch.setattr(world, "size", lambda: 3)
    look = check._look_at
    monkeypatch.setattr(check, "_look_at", lambda path: seen.append(path) or look(path))
    for rank in range(3):
        monkeypatch.setattr(world, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(world, "gather", lambda own: found.append(own) or [own])
        check.look_at(paths)
    assert sorted(seen) == paths
    monkeypatch.setattr(world, "gather", lambda own: found[:3])
    stamps, bad = check.look_at(paths)
    assert stamps.tolist() == alone[0].tolist() and bad == alone[1] and set(bad) == {3}


def run(capsys: pytest.CaptureFixture[str], *options: object) -> tuple[int, str, str]:
    """The command line's status, and what it prints."""
    status = 0
    try:
        train(*options)
    except SystemExit as error:
        status = int(error.code or 0)
    return status, *capsys.readouterr()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_folder(tmp_path / "data")
    bad = root / "cat" / "3.png"
    cut_off(bad)
    options = ("--data", f"folder:{root}", *SMALL_IMAGES, "--epochs", 1, "--out", tmp_path / "run")
    status, out, err = run(capsys, *options)
    assert status == 1 and out == f"folder:{root}: 2 classes: cat, dog\n"
    assert err.splitlines()[0] == (
        f"python -m fusedopt.train: --data folder:{root}: 1 of 20 images can't be read;"
        " --skip-bad-images leaves them out:"
    )
    assert err.splitlines()[1].startswith(f"  {bad} is damaged") and len(err.splitlines()) == 2
    assert not (tmp_path / "run").exists()
    status, out, err = run(capsys, *options, "--skip-bad-images")
    assert status == 0 and f"  {bad} is damaged" in out and "test accuracy" in out
    status, out, err = run(capsys, "--data", "folder:", "--epochs", 1)
    assert status == 2 and "error: --data: 'folder:' names no folder" in err


def test_compare_refuses_bad_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_folder(tmp_path / "data")
    cut_off(root / "cat" / "3.png")
    options = ("--data", f"folder:{root}", *SMALL_IMAGES, "--optimizers", "sgd", "--model", "lenet")
    with pytest.raises(SystemExit) as info:
        main(["compare", *map(str, options), "--out", str(tmp_path / "out")])
    assert info.value.code == 1 and "1 of 20 images can't be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_that_a_terminal_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Letters that ASCII doesn't have, and bytes that are no letters."""
    other = os.fsdecode(b"d\xff")
    root = write_folder(tmp_path / "data", 10, ("caté", other))
    (root / other / "0.png").write_bytes(b"")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    options = ("--data", f"folder:{root}", *SMALL_IMAGES, "--epochs", 1, "--out", tmp_path / "run")
    train(*options, "--skip-bad-images")
    train("--resume", tmp_path / "run", "--epochs", 2)
    sys.stdout.flush()
    said = sys.stdout.buffer.getvalue().decode()
    assert "2 classes: cat\\xe9, d\\udcff\n" in said and "d\\udcff/0.png is damaged" in said
