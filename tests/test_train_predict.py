"""The training script's `predict`: files, folders, and those that can't be read."""

from __future__ import annotations

import csv
import io
import os
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("tensorboard", reason="the training script needs fusedopt[train]")
pytest.importorskip("PIL", reason="the training script needs fusedopt[train]")

from PIL import Image
from train_folder_files import write_folder

from fusedopt.train import folder, main, predict
from fusedopt.train.data import load_data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows the digits."""
    path = tmp_path_factory.mktemp("predict") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "draw_run", lambda rows, file, *_: file.write(b"PNG"))
        main(["--model", "lenet", "--threads", "1", "--epochs", "5", "--out", str(path)])
    return path


@pytest.fixture(scope="module")
def digits(run: Path) -> tuple[Path, list[str]]:
    """A folder of digits that differ in size and colour, and what they are."""
    path, labels = run.parent / "digits", []
    path.mkdir()
    data = load_data("digits", root=path, seed=0)
    for i in range(20):
        image, label = data.test[i]
        picture = Image.fromarray(image[0].numpy())
        (picture if i % 2 else picture.convert("RGB").resize((64, 64))).save(path / f"{i:02}.png")
        labels.append(str(label))
    return path, labels


def printed(
    capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0
) -> tuple[list[str], str]:
    """The lines on stdout, and what is on stderr."""
    code = 0
    capsys.readouterr()
    try:
        main(["predict", *map(str, arguments)])
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    assert code == status, err
    return out.splitlines(), err


def test_files(
    run: Path, digits: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, labels = digits
    files = sorted(path.iterdir())
    lines, _ = printed(capsys, run, *files)
    assert [line.partition(": ")[0] for line in lines] == list(map(str, files))
    said = [line.partition(": ")[2].split() for line in lines]
    assert sum(a == b for (a, _), b in zip(said, labels, strict=True)) >= 14
    for flag in ("--top", "--top-k"):
        (line,), _ = printed(capsys, flag, 3, run / "model.pt", files[0])
        best = line.partition(": ")[2].split(", ")
        shares = [float(text.split()[1].rstrip("%")) for text in best]
        assert best[0] == " ".join(said[0]) and len(best) == 3
        assert shares == sorted(shares, reverse=True)
    (line,), _ = printed(capsys, "--top-k", 99, run, files[0])
    assert line.count("%") == 10


def test_a_folder_as_csv(
    run: Path, digits: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, labels = digits
    lines, err = printed(capsys, run, path)
    rows = list(csv.DictReader(io.StringIO("\n".join(lines))))
    assert [row["image"] for row in rows] == sorted(map(str, path.iterdir())) and err == ""
    assert sum(row["class"] == label for row, label in zip(rows, labels, strict=True)) >= 14
    lines, _ = printed(capsys, run, path, "--top-k", 2)
    both = list(csv.DictReader(io.StringIO("\n".join(lines))))
    assert list(both[0]) == ["image", "class", "probability", "class_2", "probability_2"]
    assert [row["class"] for row in both] == [row["class"] for row in rows]
    for row in both:
        assert float(row["probability"]) >= float(row["probability_2"]) >= 0
    text, _ = printed(capsys, run, path, "--format", "text")
    assert len(text) == 20 and text[0].startswith(f"{path}/00.png: ")
    few, _ = printed(capsys, run, path / "03.png", "--format", "csv")
    assert few[0] == lines_head(1)
    (alone,) = csv.DictReader(io.StringIO("\n".join(few)))
    (among,) = (row for row in rows if "/03." in row["image"])
    assert (alone["image"], alone["class"]) == (among["image"], among["class"])
    assert float(alone["probability"]) == pytest.approx(float(among["probability"]), abs=1e-5)


def lines_head(top: int) -> str:
    return ",".join(["image", "class", "probability"][: 1 + 2 * top])


def test_what_a_folder_has_besides(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More batches than one, folders in it, links, hidden files, other files; and in what order."""
    root = write_folder(tmp_path / "a", 40)
    (root / "cat" / ".hidden.png").write_bytes(b"")
    (root / "cat" / "notes, all.txt").touch()
    (root / "dog" / "again").symlink_to(".")
    (root / "dog" / "x,y.png").write_bytes((root / "dog" / "1.png").read_bytes())
    other = write_folder(tmp_path / "b", 1, ("cow",))
    lines, err = printed(capsys, run, other, root, root / "dog" / "1.png")
    rows = list(csv.reader(lines))
    expected = sorted(path for path in root.rglob("*.png") if "again" not in path.parts)
    expected = [path for path in expected if not path.name.startswith(".")]
    names = [other / "cow" / "0.png", *expected, root / "dog" / "1.png"]
    assert sorted(row[0] for row in rows[1:]) == sorted(map(str, names)) and len(names) == 83
    assert rows[1][0] == str(names[0]) and rows[-1][0] == str(names[-1])
    assert err == f"{root}: 1 file is no image that Pillow reads: 1 .txt\n"


def test_images_that_cannot_be_read(
    run: Path, digits: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = digits[0] / "00.png"
    bad, gone, pipe = tmp_path / "bad.png", tmp_path / "none.png", tmp_path / "pipe"
    bad.write_bytes(good.read_bytes()[:60])
    os.mkfifo(pipe)
    (expected,), _ = printed(capsys, run, good)
    lines, err = printed(capsys, run, bad, good, gone, pipe, status=1)
    assert lines == [expected] and len(err.splitlines()) == 3
    assert f"{bad} is damaged" in err and f"{gone} doesn't exist" in err
    assert f"{pipe} is no file" in err
    pipe.unlink()
    lines, err = printed(capsys, run, tmp_path, status=1)
    assert lines == ["image,class,probability"] and f"{bad} is damaged" in err


def test_nothing_to_predict(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, err = printed(capsys, run, tmp_path, status=2)
    assert f"error: IMAGE: {tmp_path} has no images that Pillow reads" in err
    _, err = printed(capsys, tmp_path / "no", tmp_path, status=2)
    assert f"error: CHECKPOINT: cannot read {tmp_path / 'no'}: No such file" in err
    content = torch.load(run / "model.pt", weights_only=True)
    del content["classes"]
    torch.save(content, tmp_path / "model.pt")
    _, err = printed(capsys, tmp_path, tmp_path, status=2)
    assert f"error: CHECKPOINT: {tmp_path} is damaged: 'classes'" in err
    refused = PermissionError(13, "Permission denied", str(tmp_path))

    def walk(*arguments: object) -> None:
        raise refused

    monkeypatch.setattr(predict, "Walk", walk)
    _, err = printed(capsys, run, tmp_path, status=2)
    assert f"error: IMAGE: cannot read {tmp_path}: Permission denied" in err


def test_a_reader_that_stops(
    run: Path, digits: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """As `head` does: no traceback, and none when Python writes out what is left at its end."""

    def say(text: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    moved = []
    monkeypatch.setattr(predict, "say", say)
    monkeypatch.setattr(os, "dup2", lambda *descriptors: moved.append(descriptors))
    with pytest.raises(SystemExit) as info:
        main(["predict", str(run), str(digits[0])])
    assert info.value.code == 1 and capfd.readouterr() == ("", "")
    ((null, out),) = moved
    assert os.readlink(f"/proc/self/fd/{null}") == os.devnull and out == sys.stdout.fileno()
    os.close(null)
