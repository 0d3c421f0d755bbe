"""Times whole training steps, forward and backward pass included: `python -m benchmarks.train`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import results, runs, tables
from benchmarks.implementations import IMPLEMENTATIONS, Implementation
from benchmarks.optimizers import OPTIMIZERS, Choice
from benchmarks.results import Row
from benchmarks.timing import Spread, Step, clock_for, interleave

CASE = ("optimizer", "model", "batch", "device", "threads")
KEY = (*CASE, "implementation")
# What torch.optim does where nothing is asked for, and its other paths.
NAMES = ("fusedopt", "default", "fused", "foreach", "for-loop")


def _training_step(
    model: nn.Module, make: Implementation, choice: Choice, images: Tensor, labels: Tensor
) -> Step:
    optimizer = make.make(choice, list(model.parameters()))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def measure(choice: Choice, batch: int, device: str, seconds: float, seed: int = 0) -> list[Row]:
    """Trains a ResNet-20 of its own with each implementation, by turns, and times whole steps."""
    from fusedopt.train.augment import Normalize
    from fusedopt.train.data import load_data
    from fusedopt.train.models import make_model

    digits = load_data("digits", root=Path("data"), seed=0)
    chosen = digits.train.take(torch.arange(batch) % len(digits.train))
    images = Normalize(digits.mean, digits.std)(chosen.images).to(device)
    labels = chosen.labels.to(device)
    steps: dict[str, Step] = {}
    for name in NAMES:
        torch.manual_seed(seed)
        model = make_model("resnet20", 10, 1, digits.image_size).to(device)
        implementation = IMPLEMENTATIONS.get(name, Implementation("default", "torch.optim"))
        if implementation.has(choice):
            steps[name] = _training_step(model, implementation, choice, images, labels)
    samples = interleave(steps, clock_for(device), seconds, seed)
    rows = []
    for name in steps:
        own = samples[name].seconds
        values = (choice.name, "resnet20", batch, device, torch.get_num_threads(), name)
        row: Row = dict(zip(KEY, values, strict=True))
        row["seconds"] = dataclasses.asdict(Spread.of(own))
        row["ratio"] = dataclasses.asdict(Spread.of_ratios(samples["default"].seconds, own))
        rows.append(row)
    return rows


def table_rows(rows: Sequence[Row]) -> list[list[str]]:
    """The table: one line per optimizer and implementation."""
    head = ["optimizer", "implementation", "one step", "torch's default / it", "p10–p90"]
    return [head, *(
        [row["optimizer"], row["implementation"], tables.seconds_text(row["seconds"]["median"]),
         f"{row['ratio']['median']:.2f}×",
         "–".join(f"{row['ratio'][key]:.2f}" for key in ("p10", "p90"))]
        for row in rows
    )]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        "python -m benchmarks.train",
        description="Times whole training steps of ResNet-20 on a batch of scikit-learn's digits.",
    )
    parser.add_argument(
        "--optimizer", nargs="+", choices=OPTIMIZERS, default=["sgd-momentum", "adamw"]
    )
    parser.add_argument("--batch", type=runs.number(int, 2), default=64, help="(default: 64)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--seconds", type=runs.number(float, 0), default=20.0, help="for each (default: 20)"
    )
    parser.add_argument(
        "--runs",
        type=runs.number(int, 1),
        default=1,
        help="fresh processes to take the median of (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and order (default: 0)")
    results.add_json(parser)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    if importlib.util.find_spec("sklearn") is None:
        parser.error("needs scikit-learn for its digits: pip install scikit-learn")
    with results.recording(parser, "train", arguments, options.json, CASE) as record:
        if options.runs > 1:
            runs.repeat(record, "train", arguments, options.runs, KEY)
        else:
            for name in options.optimizer:
                choice, device = OPTIMIZERS[name], options.device
                record.add(measure(choice, options.batch, device, options.seconds, options.seed))
        print(tables.align(table_rows(record.result["rows"])))


if __name__ == "__main__":
    main()
