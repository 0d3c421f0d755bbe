"""What is read of a folder of images: links, hidden files, splits, formats."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("PIL", reason="the training script needs fusedopt[train]")

from train_data_files import error_of, load
from train_folder_files import write_folder, write_image

from fusedopt.train.data import DataError, layout, read_image
from fusedopt.train.data.layout import find, split_of


def images_of(root: Path, part: str = "train") -> dict[str, int]:
    """Class of each image that is found, by name."""
    found = find(root)
    return dict(zip(found.names[part], found.labels[part], strict=True))


def remarks_of(root: Path) -> str:
    return "\n".join(find(root).remarks)


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", ".hidden", "@eaDir", "__MACOSX"])
def test_hidden_folders_are_never_read(tmp_path: Path, hidden: str) -> None:
    root = write_folder(tmp_path / "data")
    before = find(root)
    for place in (root, root / "cat", root / "cat" / "more"):
        write_image(place / hidden / "deep" / "0-checkpoint.png")
    (root / "dog" / ".DS_Store").touch()
    (root / "dog" / "._0.png").touch()
    assert find(root) == before and before.remarks == ()


@pytest.mark.parametrize(
    ("link", "target", "remark"),
    [
        ("cat/again", ".", None),
        ("cat/more/again", "..", None),
        ("cat/again", "more", None),
        ("cat/0-again.png", "0.png", None),
        ("cat/sibling", "../dog", "cat/sibling (leads to what is read as dog)"),
        ("cat/0-dog.png", "../dog/0.png", "cat/0-dog.png (leads to what is read as dog)"),
        ("cat/root", "..", "cat/root (leads to the data's folder itself, or to one around it)"),
        ("cat/up", "../..", "cat/up (leads to the data's folder itself, or to one around it)"),
        ("cat/all", "/", "cat/all (leads to the data's folder itself, or to one around it)"),
        ("all", ".", "all (leads to the data's folder itself, or to one around it)"),
        ("cat/hidden", "../.hidden", "cat/hidden (leads to a hidden folder)"),
        ("bird", ".hidden", "bird (leads to a hidden folder)"),
        ("cat/circle", "circle", "1 file is no image that Pillow reads: 1 without an ending"),
        ("cat/nowhere", "../nothing", "1 file is no image that Pillow reads: 1 without an ending"),
    ],
)
def test_links_to_what_is_read_already(
    tmp_path: Path, link: str, target: str, remark: str | None
) -> None:
    root = write_folder(tmp_path / "data")
    write_image(root / "cat" / "more" / "x.png")
    write_image(root / ".hidden" / "y.png")
    write_image(tmp_path / "other" / "z.png")
    before = find(root)
    (root / link).symlink_to(target)
    after = find(root)
    assert (after.names, after.labels, after.classes) == (
        before.names, before.labels, before.classes,
    )  # fmt: skip
    assert after.remarks == (() if remark is None else (after.remarks[0],))
    assert remark is None or remark in after.remarks[0]


def test_many_links_do_not_hang(tmp_path: Path) -> None:
    """Followed each time they are met, there would be more than 10 ** 20 paths."""
    root = write_folder(tmp_path / "data")
    before = find(root)
    for i in range(10):
        (root / "cat" / f"a{i}").symlink_to(".")
        (root / "dog" / f"b{i}").symlink_to("../cat")
        (root / f"c{i}").symlink_to("..")
    assert find(root).names == before.names


def test_two_links_in_a_circle(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").symlink_to(tmp_path / "b")
    write_image(tmp_path / "b" / "x.png")
    (tmp_path / "b" / "a").symlink_to(tmp_path / "a")
    (root / "cat" / "a").symlink_to(tmp_path / "a")
    (root / "cat" / "c").symlink_to(tmp_path / "b")
    assert [name for name in images_of(root) if "x.png" in name] == ["cat/c/x.png"]


def test_links_to_other_places_are_followed(tmp_path: Path) -> None:
    """Folders, nested ones, classes, parts, the data's folder itself, and files of any name."""
    far = write_folder(tmp_path / ".store", 3, ("cats", "dogs"))
    root = tmp_path / "real" / "train"
    (root / "cat").mkdir(parents=True)
    (root / "cat" / "sub").symlink_to(far / "cats")
    (root / "dog").symlink_to(far / "dogs")
    (root / ".blobs").mkdir()
    write_image(tmp_path / "x.png")
    (tmp_path / "x.png").rename(root / ".blobs" / "0a1b2c")
    (root / "cat" / "blob.png").symlink_to("../.blobs/0a1b2c")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(root)
    expected = {"train/cat/blob.png": 0}
    expected |= {f"train/{name}/{i}.png": k for k, name in enumerate(("cat/sub", "dog"))
                 for i in range(3)}  # fmt: skip
    assert images_of(tmp_path / "data") == expected
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert images_of(tmp_path / "link") == expected and remarks_of(tmp_path / "link") == ""


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ({"kitten": "cat"}, "data/cat and {tmp}/data/kitten are the same folder"),
        ({"x": "{tmp}/far", "y": "{tmp}/far"}, "data/x and {tmp}/data/y are the same folder"),
        ({"cat/x": "{tmp}/far", "dog/y": "{tmp}/far"}, "dog/y lead to the same images: {tmp}/far"),
        ({"cat/x": "{tmp}/far", "dog/y": "{tmp}/far/sub"}, "lead to the same images: {tmp}/far/"),
        ({"cat/x": "{tmp}/far/sub", "dog/y": "{tmp}/far"}, "lead to the same images: {tmp}/far/"),
        ({"cat/x": "{tmp}/far", "dog/y.png": "{tmp}/far/1.png"}, "lead to the same images: {tmp}"),
        ({"cat/x.png": "{tmp}/far/1.png", "dog/y.png": "{tmp}/far/1.png"}, "far/1.png"),
    ],
)
def test_one_image_of_two_classes_is_an_error(
    tmp_path: Path, links: dict[str, str], message: str
) -> None:
    root = write_folder(tmp_path / "data")
    for name in ("1.png", "sub/2.png"):
        write_image(tmp_path / "far" / name)
    for link, target in links.items():
        (root / link).symlink_to(target.format(tmp=tmp_path))
    assert message.format(tmp=tmp_path) in error_of(f"folder:{root}", tmp_path)


def test_classes_and_parts_that_are_links_to_hidden_folders(tmp_path: Path) -> None:
    write_folder(tmp_path / ".store")
    for name in ("cat", "dog", "train"):
        (tmp_path / name).symlink_to(".store" if name == "train" else f".store/{name}")
    message = error_of(f"folder:{tmp_path}", tmp_path)
    assert "has 0 folders, and there must be one for each class; links left out: cat (le" in message
    write_folder(tmp_path / "test")
    message = error_of(f"folder:{tmp_path}", tmp_path)
    assert "has test, but no folder train" in message and "train (leads to a hidden" in message


def test_parts_that_are_links_to_each_other(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    (tmp_path / "test").symlink_to("train")
    assert "/train/cat and " in error_of(f"folder:{tmp_path}", tmp_path)
    (tmp_path / "test").unlink()
    for name in ("cat", "dog"):
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "test" / name / "0.png").symlink_to(tmp_path / "train" / name / "0.png")
    message = error_of(f"folder:{tmp_path}", tmp_path)
    assert f"{tmp_path}/test has no images that Pillow reads; links left out: " in message
    assert "test/cat/0.png (leads to what is read as train/cat)" in message


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    before = images_of(root)
    os.mkfifo(root / "cat" / "pipe.png")
    (root / "dog" / "device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(root / "dog", os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/s.png")  # a socket's path must be short
        os.close(here)
    assert images_of(root) == before
    assert remarks_of(root) == "3 files are no images that Pillow reads: 3 pipe or device"
    with pytest.raises(DataError, match="pipe.png is no file"):
        read_image(root / "cat" / "pipe.png", 4)


def test_folders_that_may_not_be_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, scandir = write_folder(tmp_path / "data"), os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    (root / "cat" / "secret").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    message = error_of(f"folder:{root}", tmp_path)
    assert message == f"cannot read {root}/cat/secret: Permission denied"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train", "train"), ("Train", "train"), ("TRAINING", "train"), ("training_set", "train"),
        ("Train-Images", "train"), ("trainset", "train"), ("train data", "train"),
        ("val", "validation"), ("Valid", "validation"), ("VALIDATION", "validation"),
        ("dev", "validation"), ("validation_set", "validation"),
        ("Test", "test"), ("testing", "test"), ("test_set", "test"), ("eval", "test"),
        ("trains", None), ("tester", None), ("train2", None), ("seg_train", None), ("cat", None),
        ("invalid", None), ("training shoes", None),
    ],
)  # fmt: skip
def test_usual_names_of_splits(name: str, part: str | None) -> None:
    assert split_of(name) == part


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("Training", None, "Testing"), ("Train", None, "Test"), ("TRAIN", "VAL", "TEST"),
        ("train", "Valid", "evaluation"), ("training_set", None, "test_set"),
    ],
)  # fmt: skip
def test_splits_in_any_case(
    tmp_path: Path, train: str, validation: str | None, test: str | None
) -> None:
    for name, count in ((train, 20), (validation, 3), (test, 4)):
        if name is not None:
            write_folder(tmp_path / name, count)
    splits = load(f"folder:{tmp_path}", tmp_path, image_size=4)
    assert splits.classes == ("cat", "dog") and len(splits.test) == 8
    assert len(splits.validation) == (6 if validation else 4)
    assert {name.partition("/")[0] for name in splits.train.names} == {train}
    assert {name.partition("/")[0] for name in splits.test.names} == {test}


FLAT = {"cat": "png", "dog": "png"}


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"val": FLAT, "test": FLAT}, "has val and test, but no folder train with the images"),
        ({"test": FLAT}, "has test, but no folder train"),
        ({"train": FLAT, "Training": FLAT}, "has Training and train: which?"),
        ({"train": FLAT, "Test": FLAT, "testing": FLAT}, "has Test and testing: which?"),
        ({"cat": "png", "dog": "png", "test": FLAT}, "has test beside cat, dog: a split needs a"),
        ({"cat": "png", "dog": "png", "Test": "png"}, "has Test beside cat, dog: a split needs"),
        ({"cat": "png", "train": "png", "test": "png"}, "has train and test beside cat: a split"),
        ({"seg_train": FLAT, "seg_test": FLAT}, "has seg_test, seg_train, which look like splits"),
        ({"train": "png", "test": "png"}, "/train has 0 folders, and there must be one for each"),
        ({"train": {"cat": "png"}}, "/train has 1 folders, and there must be one for each class"),
        ({"pets": FLAT}, "has 1 folders, and there must be one for each class; did you mean "),
        ({"train": FLAT, "test": {"cat": "png", "x": "png"}}, "/test/x: the training images have"),
        ({"train": FLAT, "val": {"cat": "", "dog": ""}}, "/val has no images that Pillow reads"),
        ({"train": {"cat": "png", "dog": "txt"}}, "/train/dog has no images that Pillow reads"),
    ],
)
def test_what_is_no_split_is_an_error(tmp_path: Path, folders: dict, message: str) -> None:
    write_tree(tmp_path / "data", folders)
    assert message in error_of(f"folder:{tmp_path / 'data'}", tmp_path)


def write_tree(root: Path, folders: dict) -> None:
    """Folders in folders; "png" is one with 10 images, "txt" one with a text, "" an empty one."""
    for name, content in folders.items():
        (root / name).mkdir(parents=True)
        if isinstance(content, dict):
            write_tree(root / name, content)
        elif content == "png":
            write_folder(root, 10, (name,))
        elif content == "txt":
            (root / name / "a.txt").write_text("text")


@pytest.mark.parametrize(
    ("folders", "classes", "remark"),
    [
        ({"bus": "png", "car": "png", "train": "png"}, 3, "train is taken for a class, because it"),
        ({"valid": "png", "invalid": "png"}, 2, "valid is taken for a class, because it has no"),
        ({"test_a": "png", "b": "png"}, 2, "test_a: taken for classes; folders that are splits"),
        ({"a_test": "png", "b_test": "png"}, 2, "a_test, b_test: taken for classes; folders that"),
        ({"a": {"train": "png"}, "b": {"train": "png"}}, 2, "a, b: splits in the folder of a clas"),
        ({"train": FLAT, "test1": "png", "models": ""}, 2, "they lie beside train: models, test1"),
        ({"train": FLAT, "val": {"cat": "png"}}, 2, "val has no folder for dog"),
        ({"train": FLAT, "val": {"cat": "png", "dog": ""}}, 2, "val/dog has no images"),
    ],
)
def test_what_may_not_be_meant_is_said(
    tmp_path: Path, folders: dict, classes: int, remark: str
) -> None:
    write_tree(tmp_path, folders)
    said: list[str] = []
    splits = load(f"folder:{tmp_path}", tmp_path, image_size=4, say=said.append)
    assert len(splits.classes) == classes and remark in "\n".join(said)
    assert said[0] == f"folder:{tmp_path}: {classes} classes: {', '.join(splits.classes)}"


@pytest.mark.parametrize("test", ["png", {"unknown": "png"}, {"test": "png"}, ""])
def test_a_test_set_without_labels_is_left_out(tmp_path: Path, test: object) -> None:
    """As Kaggle's competitions have it."""
    write_tree(tmp_path, {"train": FLAT, "test": test})
    said: list[str] = []
    splits = load(f"folder:{tmp_path}", tmp_path, image_size=4, say=said.append)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [14, 2, 4]
    assert all(name.startswith("train/") for name in splits.test.names)
    assert said[1].startswith("  test has no labels, because it has no folder for each class, and")


def test_names_of_many_classes_are_shortened(tmp_path: Path) -> None:
    write_folder(tmp_path, 10, tuple(f"c{i:02}" for i in range(30)))
    said: list[str] = []
    load(f"folder:{tmp_path}", tmp_path, image_size=4, say=said.append)
    names = ", ".join(f"c{i:02}" for i in range(8))
    assert said == [f"folder:{tmp_path}: 30 classes: {names}, ..., c29"]
    said.clear()
    load("digits", tmp_path, classes=[7, 3], say=said.append)
    assert said == ["digits: 2 classes: 7, 3"]


def test_empty_and_unusual_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "names no folder" in error_of("folder:", tmp_path)
    root = write_folder(tmp_path / "pets")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("folder:~/pets", tmp_path, image_size=4).train.root == str(root)
    monkeypatch.chdir(tmp_path)
    assert load("folder:pets", tmp_path, image_size=4).train.root == str(root)
    assert layout.find(Path("pets")) == layout.find(root)


@pytest.mark.parametrize("names", [("trainA", "testA"), ("ImagesTrain", "ImagesTest")])
def test_names_with_a_splits_word_in_capitals(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        write_folder(tmp_path / name)
    assert "look like splits and not like classes" in error_of(f"folder:{tmp_path}", tmp_path)


@pytest.mark.parametrize("names", [("tr", "te"), ("traindir", "testdir"), ("fold1", "fold2")])
def test_folders_with_the_same_folders_in_them(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        write_folder(tmp_path / name)
    said: list[str] = []
    load(f"folder:{tmp_path}", tmp_path, image_size=4, say=said.append)
    assert any("though the same folders are in each" in line for line in said)


def test_what_the_script_has_written_is_no_class(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets")
    for path in ("compare/compare.csv", "runs/a/checkpoint.pt", "cat/old/checkpoint.pt"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
        shutil.copy(next((root / "dog").glob("*.png")), (root / path).parent / "curves.png")
    (root / "cat" / "old" / "checkpoint.pt").unlink()  # in a class, all folders are read
    said: list[str] = []
    splits = load(f"folder:{root}", tmp_path, image_size=4, say=said.append)
    assert splits.classes == ("cat", "dog")
    assert any("this script has written there: compare, runs" in line for line in said)


def test_hard_links_are_one_image(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets")
    for image in list((root / "cat").glob("*.png")):
        os.link(image, image.with_name(f"again{image.name}"))
    names = images_of(root)
    assert len(names) == len(set(names)) == len(images_of(write_folder(tmp_path / "same")))
    image = next((root / "cat").glob("*.png"))
    os.link(image, root / "dog" / "cat.png")
    assert "are the same file" in error_of(f"folder:{root}", tmp_path)
