"""Classifies image files with a trained network: `python -m fusedopt.train predict`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusedopt.train import checkpoint
from fusedopt.train.augment import Normalize
from fusedopt.train.data import DataError
from fusedopt.train.data.folder import read_image
from fusedopt.train.flags import number
from fusedopt.train.models import make_model
from fusedopt.train.options import UserError, pick_device

BATCH = 64


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m fusedopt.train predict",
        usage="%(prog)s [options] CHECKPOINT IMAGE [IMAGE ...]",
        description="Prints the class of each image, and its probability.",
    )
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="a run's folder, or a file from it")
    add("images", type=Path, nargs="+", metavar="IMAGE", help="a file in a format Pillow reads")
    add("--top", type=number(int, 1), default=1, metavar="K",
        help="print the K likeliest classes (default: 1)")  # fmt: skip
    add("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    return parser


def predict(arguments: argparse.Namespace) -> None:
    """Prints a line for each image: its name, and the likeliest classes.

    Args:
        arguments: what `make_parser`'s parser made of the command line.

    Raises:
        UserError: the checkpoint can't be read.
        SystemExit: with status 2, after all others were classified, if images can't be read.
    """
    device = torch.device(pick_device(arguments.device))
    content = checkpoint.read(arguments.checkpoint, "CHECKPOINT")
    try:
        model, normalize = _load(content)
        shape, classes = (content["image_size"], content["in_channels"]), content["classes"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"CHECKPOINT: {arguments.checkpoint} is damaged: {reason}") from error
    model.to(device).eval()
    unreadable = 0

    def readable() -> Iterator[tuple[Path, Tensor]]:
        nonlocal unreadable
        for path in arguments.images:
            try:
                yield path, read_image(path, *shape)
            except DataError as error:
                unreadable += 1
                print(f"python -m fusedopt.train predict: {error}", file=sys.stderr)

    batch: list[tuple[Path, Tensor]] = []
    for item in readable():
        batch.append(item)
        if len(batch) == BATCH:
            _classify(model, normalize, batch, classes, arguments.top, device)
            batch = []
    if batch:
        _classify(model, normalize, batch, classes, arguments.top, device)
    if unreadable:
        sys.exit(2)


def _load(content: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """Returns the network and the normalisation of its images."""
    name, classes = content["options"]["model"], content["classes"]
    model = make_model(name, len(classes), content["in_channels"], content["image_size"])
    model.load_state_dict(checkpoint.weights_of(content))
    return model, Normalize(content["mean"], content["std"])


@torch.no_grad()
def _classify(
    model: nn.Module,
    normalize: nn.Module,
    batch: list[tuple[Path, Tensor]],
    classes: list[str],
    top: int,
    device: torch.device,
) -> None:
    """Prints the lines of some images."""
    images = normalize(torch.stack([image for _, image in batch]).to(device))
    likeliest = model(images).softmax(1).topk(min(top, len(classes)))
    for (path, _), shares, labels in zip(
        batch, likeliest.values.tolist(), likeliest.indices.tolist(), strict=True
    ):
        named = [f"{classes[i]} {share:.1%}" for i, share in zip(labels, shares, strict=True)]
        print(f"{path}: {', '.join(named)}")
