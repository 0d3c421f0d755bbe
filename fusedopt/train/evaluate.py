"""What a trained network knows, of each class too: `python -m fusedopt.train evaluate`."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor, nn
from tqdm import tqdm

from fusedopt.train import checkpoint
from fusedopt.train.cli import make_parser as make_run_parser
from fusedopt.train.cli import parse
from fusedopt.train.confusion import draw_confusion
from fusedopt.train.data import DataError, Splits, make_loader
from fusedopt.train.data.splits import Part
from fusedopt.train.folder import write_csv, write_json
from fusedopt.train.loop import autocast
from fusedopt.train.options import Options, UserError
from fusedopt.train.parsers import workers
from fusedopt.train.source import find_splits, user_error
from fusedopt.train.trained import load_network
from fusedopt.train.world import say

PARTS = ("test", "validation", "train")
PRINTED = 40  # classes
TOP = 5


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m fusedopt.train evaluate",
        usage="%(prog)s [options] RUN",
        description="Prints how often a run's network is right: in all, among its five likeliest"
        " classes, and for each class. These figures and the confusion matrix, as a picture and as"
        " CSV, go to the folder evaluate-test in the run's.",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a run's folder")
    add("--part", choices=PARTS, default="test", help="of the run's data (default: test)")
    add("--data", metavar="SPEC", help="where a folder of images is now (default: where it was)")
    add("--data-dir", type=Path, metavar="PATH", help="where data sets lie (default: as trained)")
    add("--device", help="cpu, cuda or cuda:N (default: as trained)")
    add("--workers", type=workers, metavar="N", help="processes that load")
    return parser


class Answers(NamedTuple):
    """What a network says of a data set.

    Attributes:
        labels: (N,), the true classes.
        predicted: (N,), the likeliest ones.
        among_top: how often the true class is among the likeliest five.
    """

    labels: np.ndarray
    predicted: np.ndarray
    among_top: int


def evaluate(arguments: argparse.Namespace) -> None:
    """Prints and writes a run's figures.

    Args:
        arguments: what `make_parser`'s parser made of the command line.

    Raises:
        UserError: the run or its data can't be read, or a file can't be written.
        Failed: images have changed and can't be read.
    """
    given = vars(arguments)
    path, part = given.pop("run"), given.pop("part")
    more = [text for k, v in given.items() if v is not None
            for text in (f"--{k.replace('_', '-')}", str(v))]  # fmt: skip
    try:
        options, content = parse(make_run_parser(), ["--resume", str(path), *more])
    except UserError as error:
        raise UserError(str(error).replace("--resume:", "RUN:")) from error
    file = path / checkpoint.MODEL
    weights = checkpoint.read(file, "RUN") if file.is_file() else content
    model, normalize = load_network(weights, file, "RUN")
    model.to(options.device, options.weights_dtype())
    splits = find_splits(options, content)
    dataset = getattr(splits, part)
    try:
        answers = _ask(model, normalize, dataset, options)
    except DataError as error:
        raise user_error(error, options) from error
    epoch = weights.get("epoch") or (content.get("stopping") or {}).get("epoch")
    part_of = f"{part} set of {options.data}"
    say(f"{options.model} of {path}, epoch {epoch}, on the {part_of}: {len(dataset)} images")
    title = f"{options.model}, epoch {epoch}, {part_of}"
    _report(path / f"evaluate-{part}", answers, splits, title)


@torch.no_grad()
def _ask(model: nn.Module, normalize: nn.Module, dataset: Part, options: Options) -> Answers:
    labels: list[Tensor] = []
    predicted: list[Tensor] = []
    among_top = 0
    loader = make_loader(dataset, 256, shuffle=False, workers=options.workers)
    for images, truth in tqdm(loader, unit="batch", leave=False, disable=None):
        images = normalize(images.to(options.device)).to(options.weights_dtype())
        with autocast(options):
            logits = model(images).float().cpu()
        likeliest = logits.topk(min(TOP, logits.shape[1])).indices
        among_top += int((likeliest == truth[:, None]).sum())
        labels.append(truth)
        predicted.append(logits.argmax(1))
    return Answers(torch.cat(labels).numpy(), torch.cat(predicted).numpy(), among_top)


def _report(folder: Path, answers: Answers, splits: Splits, title: str) -> None:
    """Prints the figures, and writes them into a folder."""
    labels, predicted, among_top = answers
    names, every = splits.classes, range(len(splits.classes))
    figures: dict[str, Any] = {"images": len(labels), "top-1": float((labels == predicted).mean())}
    say(f"top-1 accuracy {figures['top-1']:.2%}")
    if len(names) > TOP:
        figures["top-5"] = among_top / len(labels)
        say(f"top-5 accuracy {figures['top-5']:.2%}")
    matrix = confusion_matrix(labels, predicted, labels=every)
    rows = _classes(answers, matrix, names)
    _print(rows)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"RUN: cannot write to {folder}: {error.strerror}") from error
    write_json(folder / "figures.json", figures)
    write_csv(folder / "classes.csv", rows)
    counts = [dict(zip(names, row, strict=True)) for row in matrix.tolist()]
    head = "true class, and as what it was taken"
    write_csv(
        folder / "confusion.csv",
        [{head: name} | row for name, row in zip(names, counts, strict=True)],
    )
    image = io.BytesIO()
    draw_confusion(matrix, names, f"{title}: top-1 {figures['top-1']:.1%}", image)
    checkpoint.write_atomically(
        folder / "confusion.png", lambda file: file.write(image.getvalue()) and None
    )
    say(f"{folder}: figures.json, classes.csv, confusion.csv, confusion.png")


def _classes(answers: Answers, matrix: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    precision, recall, f1, images = precision_recall_fscore_support(
        answers.labels, answers.predicted, labels=range(len(names)), zero_division=0
    )
    wrong = matrix - np.diag(matrix.diagonal())
    return [
        {
            "class": name,
            "images": int(images[i]),
            "precision": f"{precision[i]:.4f}",
            "recall": f"{recall[i]:.4f}",
            "F1": f"{f1[i]:.4f}",
            "mostly taken for": names[wrong[i].argmax()] if wrong[i].any() else "",
        }
        for i, name in enumerate(names)
    ]


def _print(rows: Sequence[dict[str, Any]]) -> None:
    """Prints the classes: of many those that are recognised least."""
    if len(rows) > PRINTED:
        say(f"the {PRINTED} of {len(rows)} classes that are recognised least:")
        rows = sorted(rows, key=lambda row: float(row["recall"]))[:PRINTED]
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        first, *numbers, last = line
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True)]
        say("  ".join([first.ljust(widths[0]), *cells, last]).rstrip())
