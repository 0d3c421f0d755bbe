"""A resumed run goes on with the images that it had, wherever they are, and says what changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("tensorboard", reason="the training script needs fusedopt[train]")
pytest.importorskip("PIL", reason="the training script needs fusedopt[train]")

from train_data_files import archive, cifar10_members
from train_folder_files import SMALL_IMAGES, cut_off, write_folder, write_image
from train_runs import (  # noqa: F401
    assert_same,
    error_of,
    metrics,
    no_chart,
    read,
    short_measurement,
    train,
)

from fusedopt.train import cost, loop, main
from fusedopt.train import folder as folder_of_run
from fusedopt.train.data import check
from fusedopt.train.data.folder import FolderSet
from fusedopt.train.data.kept import PARTS, names_of

# A schedule that doesn't depend on the number of epochs.
OPTIONS = (*SMALL_IMAGES, "--checkpoint-every", 1, "--scheduler", "exponential")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a run of one epoch on them and one of two, for all tests to copy."""
    path = tmp_path_factory.mktemp("kept")
    root = write_folder(path / "data", 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "ROUNDS", 1)
        patch.setattr(folder_of_run, "draw_run", lambda rows, file, *_: file.write(b"PNG"))
        for name, epochs in (("run", 1), ("whole", 2)):
            options = ("--data", f"folder:{root}", *OPTIONS, "--epochs", epochs)
            train(*options, "--out", path / name)
    return path


@pytest.fixture
def root(tmp_path: Path, runs: Path) -> Path:
    return shutil.copytree(runs / "data", tmp_path / "data")  # with their times


@pytest.fixture
def folder(tmp_path: Path, runs: Path, root: Path) -> Path:
    """A run of one epoch."""
    path = shutil.copytree(runs / "run", tmp_path / "run")
    content = torch.load(path / "checkpoint.pt", weights_only=True)
    content["options"]["data"] = f"folder:{root}"
    torch.save(content, path / "checkpoint.pt")
    return path


@pytest.fixture
def whole(runs: Path) -> Path:
    """A run of two epochs that was never stopped."""
    return runs / "whole"


def names(folder: Path) -> dict[str, list[str]]:
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    return {part: names_of(content["split"], part) for part in PARTS}


def content_of(folder: Path) -> dict[str, Any]:
    """What must be the same in two runs, wherever their images are and were written."""
    content = read(folder)
    del content["options"]["data"], content["options"]["data_dir"]
    for part in PARTS:
        del content["split"][part]["stamps"]
    return content


def test_the_split_is_kept(root: Path, folder: Path) -> None:
    kept = names(folder)
    assert [len(kept[part]) for part in PARTS] == [28, 4, 8]
    assert sorted(sum(kept.values(), [])) == sorted(
        str(path.relative_to(root)) for path in root.rglob("*.png")
    )


def test_another_working_directory(
    tmp_path: Path, root: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    train("--data", "folder:../data", *OPTIONS, "--epochs", 1, "--out", "../run")
    monkeypatch.chdir("/")
    train("--resume", tmp_path / "run", "--epochs", 2)
    assert_same(content_of(tmp_path / "run"), content_of(whole))
    assert read(tmp_path / "run")["options"]["data"] == f"folder:{root}"


def test_data_sets_from_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar-10-python.tar.gz").write_bytes(archive(cifar10_members()))
    monkeypatch.chdir(tmp_path)
    train("--data", "cifar10", "--per-class", 2, "--epochs", 1, "--out", "run")
    monkeypatch.chdir("/")
    train("--resume", tmp_path / "run", "--epochs", 2)
    assert len(metrics(tmp_path / "run")) == 2


@pytest.mark.parametrize("how", [Path.rename, shutil.copytree, "copy without times"])
def test_a_folder_that_was_moved(
    tmp_path: Path,
    root: Path,
    folder: Path,
    whole: Path,
    capsys: pytest.CaptureFixture[str],
    how: Any,
) -> None:
    """Nothing has changed in it, also where all files have another time."""
    moved = tmp_path / "moved"
    if callable(how):
        how(root, moved)
    else:
        shutil.copytree(root, moved, copy_function=shutil.copyfile)
    capsys.readouterr()
    train("--resume", folder, "--epochs", 2, "--data", f"folder:{moved}")
    assert "since the checkpoint" not in capsys.readouterr().out
    assert_same(content_of(folder), content_of(whole))
    train("--resume", folder, "--epochs", 3)  # it knows the new place
    assert read(folder)["options"]["data"] == f"folder:{moved}"


def test_a_folder_that_is_gone(
    root: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root.rename(root.with_name("moved"))
    line = error_of(capsys, "--resume", folder, "--epochs", 2)
    assert line.endswith(f"there is no folder {root}; --data folder:PATH says where it is now")
    other = write_folder(root.with_name("other"), 9, ("cow", "pig"))
    line = error_of(capsys, "--resume", folder, "--epochs", 2, "--data", f"folder:{other}")
    assert line.endswith(f"{other} has none of the 40 images that the run had")
    line = error_of(capsys, "--resume", folder, "--epochs", 2, "--data", "folder:")
    assert line.endswith("--data: 'folder:' names no folder; the form is folder:PATH")
    line = error_of(capsys, "--resume", folder, "--epochs", 2, "--data", "digits")
    assert f"was trained with --data folder:{root} (not digits)" in line


def test_what_changed_is_said(root: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(folder)
    gone, changed = before["train"][3], before["test"][1]
    (root / gone).unlink()
    status = os.stat(root / changed)
    (root / changed).write_bytes((root / before["test"][2]).read_bytes())
    os.utime(root / before["train"][5])  # touched, but the same
    for i in range(8):
        write_image(root / "cat" / f"new{i}.png")
    write_image(root / "cow" / "0.png")
    assert os.stat(root / changed).st_mtime_ns != status.st_mtime_ns
    capsys.readouterr()
    train("--resume", folder, "--epochs", 2)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"folder:{root}: 2 classes: cat, dog"
    assert f"  1 image is gone since the checkpoint: {gone}" in said
    assert f"  1 image is changed since the checkpoint: {changed}" in said
    new = "cat/new0.png, cat/new1.png, cat/new2.png, cat/new3.png, ..., cow/0.png"
    assert f"  9 images are new since the checkpoint, and left out: {new}" in said
    after = names(folder)
    assert after.pop("train") == [name for name in before.pop("train") if name != gone]
    assert after == before
    train("--resume", folder, "--epochs", 3)  # the new state is what later ones are compared with
    said = capsys.readouterr().out
    assert "is gone" not in said and "is changed" not in said and "9 images are new" in said


def test_a_removed_image_in_the_middle_of_an_epoch(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that was damaged while training, which ends the run; then the file is removed."""
    options = ("--data", f"folder:{root}", *OPTIONS, "--epochs", 2, "--out", tmp_path / "run")
    order, show, files = loop.epoch_order, loop._show, []

    def remember(dataset: FolderSet, *others: Any) -> list[int]:
        indices = order(dataset, *others)
        files[:] = [dataset.paths[i] for i in indices]
        return indices

    def damage_later(*arguments: Any) -> None:
        show(*arguments)
        cut_off(Path(files[-1]))

    with monkeypatch.context() as patch:
        patch.setattr(loop, "epoch_order", remember)
        patch.setattr(loop, "_show", damage_later)
        line = error_of(capsys, *options, code=1)
    bad = Path(files[-1])
    assert f"{bad} is damaged, or no image: " in line
    assert line.endswith(f"; once it is mended or removed, --resume {tmp_path / 'run'} goes on")
    assert read(tmp_path / "run")["batch"] > 0
    line = error_of(capsys, "--resume", tmp_path / "run", code=1)
    assert line.startswith(f"  {bad} is damaged")
    bad.unlink()
    train("--resume", tmp_path / "run")
    assert len(metrics(tmp_path / "run")) == 2
    assert len(names(tmp_path / "run")["train"]) == 27


def test_a_bad_image_can_be_skipped_when_resuming(
    root: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = names(folder)["train"][0]
    cut_off(root / bad)
    line = error_of(capsys, "--resume", folder, "--epochs", 2, code=1)
    assert line.startswith(f"  {root / bad} is damaged")
    train("--resume", folder, "--epochs", 2, "--skip-bad-images")
    assert bad not in names(folder)["train"] and len(names(folder)["train"]) == 27
    shutil.copy(root / names(folder)["train"][0], root / bad)
    train("--resume", folder, "--epochs", 3)  # what was left out stays out
    assert len(names(folder)["train"]) == 27


def test_a_class_or_a_part_that_is_gone(
    root: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(root / "dog")
    train("--resume", folder, "--epochs", 2)
    said = capsys.readouterr().out
    assert "20 images are gone since the checkpoint" in said
    assert "no training image of the class dog is left: the run goes on without it" in said
    assert "not looked for new images: " in said and "has 1 folders, and there must be" in said
    for name in names(folder)["validation"]:
        (root / name).unlink()
    line = error_of(capsys, "--resume", folder, "--epochs", 3)
    assert line.endswith("none of the 2 validation images is left")


def test_unchanged_images_are_not_looked_at_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_look_at", lambda path: pytest.fail(path))
    train("--resume", folder, "--epochs", 2)


def test_some_classes_and_images_stay_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What --classes, --per-class and the parts of a folder leave out isn't new."""
    for part in ("Train", "Test"):
        write_folder(tmp_path / "data" / part, 10, ("cat", "cow", "dog"))
    options = ("--data", f"folder:{tmp_path / 'data'}", *OPTIONS, "--classes", "2,0")
    options += ("--per-class", 4)
    train(*options, "--epochs", 2, "--out", tmp_path / "whole")
    train(*options, "--epochs", 1, "--out", tmp_path / "run")
    capsys.readouterr()
    train("--resume", tmp_path / "run", "--epochs", 2)
    said = capsys.readouterr().out
    assert "2 classes: dog, cat" in said and "since the checkpoint" not in said
    assert_same(read(tmp_path / "run"), read(tmp_path / "whole"))


def test_checkpoints_of_before(
    root: Path, folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They have no files' names, and the folder as it was given."""
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    del content["split"]
    for name in ("class_weights", "sampler", "skip_bad_images"):
        del content["options"][name]
    content["options"]["data"] = f"folder:{os.path.relpath(root)}"
    content["options"]["data_dir"] = "data"
    torch.save(content, folder / "checkpoint.pt")
    train("--resume", folder, "--epochs", 2)
    assert_same(content_of(folder), content_of(whole))

    torch.save(content, folder / "checkpoint.pt")
    (root / "cat" / "3.png").unlink()
    line = error_of(capsys, "--resume", folder, "--epochs", 2)
    assert "was trained with other data than there is now; its checkpoint is an older one" in line


@pytest.mark.parametrize(
    "damage",
    [
        lambda split: split.pop("unused"),
        lambda split: split.pop("test"),
        lambda split: split.update(train=None),
        lambda split: split["train"].update(names=3),
        lambda split: split["train"].update(names="a\0b"),
        lambda split: split["train"].update(stamps=None),
        lambda split: split["train"].pop("labels"),
    ],
)
def test_a_damaged_split(folder: Path, capsys: pytest.CaptureFixture[str], damage: Any) -> None:
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    damage(content["split"])
    torch.save(content, folder / "checkpoint.pt")
    assert f"--resume: {folder} is damaged: " in error_of(capsys, "--resume", folder)


def test_compare_goes_on_with_the_same_images(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also those runs that hadn't begun before the folder was moved and changed."""

    def compare(place: Path, optimizers: str, epochs: int) -> None:
        options = ("--data", f"folder:{place}", *OPTIONS, "--model", "lenet", "--impl", "fusedopt")
        options += ("--optimizers", optimizers, "--epochs", epochs, "--out", tmp_path / "out")
        options += ("--seeds", 1, "--scheduler", "cosine")
        main(["compare", *map(str, options)])

    monkeypatch.setattr("fusedopt.train.compare.draw_comparison", lambda *arguments: None)
    compare(root, "sgd", 1)
    moved = root.rename(tmp_path / "moved")
    (moved / "cat" / "3.png").unlink()
    write_image(moved / "cat" / "new.png")
    compare(moved, "sgd,adam", 2)
    assert "1 image is gone since the checkpoint: cat/3.png" in capsys.readouterr().out
    split = names(tmp_path / "out" / "adam-fusedopt-seed0")
    assert split == names(tmp_path / "out" / "sgd-fusedopt-seed0")
    assert not {"cat/3.png", "cat/new.png"} & set(sum(split.values(), []))
