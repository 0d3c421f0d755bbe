"""Classifies image files with a trained network: `python -m fusedopt.train predict`."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fusedopt.train import checkpoint
from fusedopt.train.data import DataError
from fusedopt.train.data.folder import read_image
from fusedopt.train.data.scan import Walk, describe, shorten
from fusedopt.train.options import UserError, pick_device
from fusedopt.train.parsers import number
from fusedopt.train.trained import load_network
from fusedopt.train.world import say

BATCH = 64


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m fusedopt.train predict",
        usage="%(prog)s [options] CHECKPOINT IMAGE [IMAGE ...]",
        description="Prints the class of each image, and its probability. An image that can't be"
        " read is named, and the status is 1 once the others are classified.",
    )
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="a run's folder, or a file from it")
    add("images", type=Path, nargs="+", metavar="IMAGE",
        help="a file in a format Pillow reads, or a folder: all such files in it, but hidden"
        " ones")  # fmt: skip
    add("--top-k", "--top", type=number(int, 1), default=1, metavar="K",
        help="print the K likeliest classes (default: 1)")  # fmt: skip
    add("--format", choices=("text", "csv"),
        help="of what is printed (default: csv if there is a folder, or else text)")  # fmt: skip
    add("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    return parser


def predict(arguments: argparse.Namespace) -> None:
    """Prints a line for each image: its name, and the likeliest classes.

    Args:
        arguments: what `make_parser`'s parser made of the command line.

    Raises:
        UserError: the checkpoint can't be read, or there are no images.
        SystemExit: with status 1, after all others were classified, if images can't be read.
    """
    device = torch.device(pick_device(arguments.device))
    content = checkpoint.read(arguments.checkpoint, "CHECKPOINT")
    model, normalize = load_network(content, arguments.checkpoint, "CHECKPOINT")
    model.to(device)
    shape, classes = (content["image_size"], content["in_channels"]), content["classes"]
    paths, top = _files(arguments.images), min(arguments.top_k, len(classes))
    folders = any(path.is_dir() for path in arguments.images)
    as_csv = arguments.format == "csv" or (folders and arguments.format is None)
    if as_csv:
        _print_csv_head(top)
    unreadable = 0

    def readable() -> Iterator[tuple[Path, Tensor]]:
        nonlocal unreadable
        quiet = None if folders and not sys.stdout.isatty() else True
        for path in tqdm(paths, unit="img", leave=False, disable=quiet):
            try:
                yield path, read_image(path, *shape)
            except DataError as error:
                unreadable += 1
                print(f"python -m fusedopt.train predict: {error}", file=sys.stderr)

    images = readable()
    while batch := list(islice(images, BATCH)):
        tensors = normalize(torch.stack([image for _, image in batch]).to(device))
        for (path, _), likeliest in zip(batch, _classify(model, tensors, top), strict=True):
            _print(path, [(classes[i], share) for i, share in likeliest], as_csv)
    if unreadable:
        sys.exit(1)


def _print_csv_head(top: int) -> None:
    more = [f"{name}_{i}" for i in range(2, top + 1) for name in ("class", "probability")]
    _print_csv(["image", "class", "probability", *more])


def _print(path: Path, likeliest: Sequence[tuple[str, float]], as_csv: bool) -> None:
    if as_csv:
        cells = [cell for name, share in likeliest for cell in (name, f"{share:.6f}")]
        _print_csv([path, *cells])
    else:
        say(f"{path}: {', '.join(f'{name} {share:.1%}' for name, share in likeliest)}")


def _files(given: Sequence[Path]) -> list[Path]:
    """Returns the files, and in the place of a folder the images in it.

    Raises:
        UserError: there are none in one.
    """
    files: list[Path] = []
    for path in given:
        if not path.is_dir():
            files.append(path)
            continue
        try:
            walk = Walk(path, [""])
        except OSError as error:
            raise UserError(f"IMAGE: cannot read {error.filename}: {error.strerror}") from error
        if walk.others:
            print(f"{path}: {describe(walk.others)}", file=sys.stderr)
        if walk.left_out:
            print(f"{path}: links left out: {shorten(walk.left_out, 6)}", file=sys.stderr)
        if not walk.images[0]:
            if len(given) == 1:
                raise UserError(f"IMAGE: {path} has no images that Pillow reads")
            files.append(path)  # reading it says so
        files += [path / name for name in walk.images[0]]
    return files


def _print_csv(cells: Sequence[object]) -> None:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    say(line.getvalue())


@torch.no_grad()
def _classify(model: nn.Module, images: Tensor, top: int) -> list[list[tuple[int, float]]]:
    """Returns for each image its likeliest classes and their probabilities."""
    likeliest = model(images).softmax(1).topk(top)
    pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    return [list(zip(labels, shares, strict=True)) for labels, shares in pairs]
