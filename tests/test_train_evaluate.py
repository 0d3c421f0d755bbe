"""The training script's `evaluate`: what a trained network knows, in all and of each class."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("tensorboard", reason="the training script needs fusedopt[train]")
pytest.importorskip("PIL", reason="the training script needs fusedopt[train]")

from PIL import Image
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from train_folder_files import SMALL_IMAGES, write_folder
from train_runs import SMALL, no_chart, train  # noqa: F401

from fusedopt.train import main
from fusedopt.train.augment import Normalize
from fusedopt.train.data import load_data


def evaluate(*arguments: object) -> None:
    main(["evaluate", *map(str, arguments)])


def fail(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as info:
        evaluate(*arguments)
    assert info.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_figures_are_those_of_the_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As scikit-learn has them, on the images that the run was tested with."""
    result = train("--epochs", 3, "--no-cost", "--out", tmp_path / "run")
    capsys.readouterr()
    evaluate(tmp_path / "run")
    said, out = capsys.readouterr().out, tmp_path / "run" / "evaluate-test"
    data = load_data("digits", root=tmp_path, seed=0)
    model, normalize = result.model.eval(), Normalize(data.mean, data.std)
    with torch.no_grad():
        logits = model(normalize(data.test.images))
    labels, predicted = data.test.labels, logits.argmax(1)
    top5 = (logits.topk(5).indices == labels[:, None]).any(1).float().mean().item()

    figures = json.loads((out / "figures.json").read_text())
    assert figures["top-1"] == result.test.accuracy
    assert figures["top-5"] == pytest.approx(top5) and figures["images"] == 360
    assert f"top-1 accuracy {result.test.accuracy:.2%}" in said
    assert f"top-5 accuracy {top5:.2%}" in said
    assert f"lenet of {tmp_path / 'run'}, epoch 3, on the test set of digits: 360 images" in said

    precision, recall, _, support = precision_recall_fscore_support(
        labels, predicted, labels=range(10), zero_division=0
    )
    classes = table(out / "classes.csv")
    assert [row["class"] for row in classes] == list(map(str, range(10)))
    assert [int(row["images"]) for row in classes] == support.tolist()
    assert [float(row["precision"]) for row in classes] == pytest.approx(precision, abs=1e-4)
    assert [float(row["recall"]) for row in classes] == pytest.approx(recall, abs=1e-4)

    matrix = confusion_matrix(labels, predicted, labels=range(10))
    rows = list(csv.reader((out / "confusion.csv").open()))
    assert rows[0][1:] == [row[0] for row in rows[1:]] == list(map(str, range(10)))
    assert np.array_equal(np.array([row[1:] for row in rows[1:]], dtype=int), matrix)
    off = matrix - np.diag(matrix.diagonal())
    worst = classes[int(np.argmin(recall))]
    assert worst["mostly taken for"] == str(off[int(worst["class"])].argmax())
    with Image.open(out / "confusion.png") as chart:
        assert chart.format == "PNG" and chart.width > 300


def test_a_folder_that_has_moved_and_a_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images are those of the checkpoint's split; two classes have no top-5."""
    root = write_folder(tmp_path / "data", 20)
    options = ("--data", f"folder:{root}", *SMALL_IMAGES, "--epochs", 1, "--no-cost")
    train(*options, "--out", tmp_path / "run")
    moved = root.rename(tmp_path / "moved")
    assert "there is no folder" in fail(capsys, tmp_path / "run")
    evaluate(tmp_path / "run", "--data", f"folder:{moved}", "--part", "validation")
    said = capsys.readouterr().out
    assert "on the validation set of" in said and "4 images" in said and "top-5" not in said
    assert (tmp_path / "run" / "evaluate-validation" / "confusion.png").exists()
    assert [row["class"] for row in table(
        tmp_path / "run" / "evaluate-validation" / "classes.csv"
    )] == ["cat", "dog"]  # fmt: skip


def test_an_unfinished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(*SMALL, "--epochs", 1, "--no-cost", "--out", tmp_path)
    (tmp_path / "model.pt").unlink()
    evaluate(tmp_path)
    assert "epoch 1, on the test set" in capsys.readouterr().out


def test_bad_arguments_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"cannot read {tmp_path / 'no'}" in fail(capsys, tmp_path / "no")
    train(*SMALL, "--epochs", 1, "--no-cost", "--out", tmp_path / "run")
    line = fail(capsys, tmp_path / "run" / "model.pt")
    assert "is a file; name the run's folder" in line
    content = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    del content["model"]["fc1.bias"]
    torch.save(content, tmp_path / "run" / "model.pt")
    assert "is damaged: " in fail(capsys, tmp_path / "run")
    assert not (tmp_path / "run" / "evaluate-test").exists()
