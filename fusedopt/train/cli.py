"""The training script's command line: its options, their checks, and one line for each error."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusedopt.train.run import Result

MODELS = ("resnet20", "lenet")

# What each optimizer gets where the command line doesn't say otherwise. The keys are also the
# options it has: --momentum with adam is an error.
DEFAULTS: dict[str, dict[str, float]] = {
    "sgd": {"lr": 0.05, "weight_decay": 5e-4, "momentum": 0.9},
    "adagrad": {"lr": 0.02, "weight_decay": 0.0},
    "rmsprop": {"lr": 1e-3, "weight_decay": 0.0, "momentum": 0.0},
    "adadelta": {"lr": 1.0, "weight_decay": 0.0},
    "adam": {"lr": 3e-3, "weight_decay": 0.0},
    "adamw": {"lr": 3e-3, "weight_decay": 1e-2},
}


class UserError(Exception):
    """Something that the user can put right; its text is the whole message."""


@dataclass(frozen=True)
class Options:
    """What the command line says, with the optimizer's defaults filled in."""

    model: str
    optimizer: str
    impl: str
    lr: float
    weight_decay: float
    momentum: float | None
    gamma: float
    epochs: int
    batch_size: int
    seed: int
    threads: int | None
    device: str
    checkpoint: Path | None
    resume: Path | None

    def optimizer_kwargs(self) -> dict[str, float]:
        """Returns the keyword arguments of the optimizer's constructor."""
        return {name: getattr(self, name) for name in DEFAULTS[self.optimizer]}


def _number(kind: type, low: float, high: float = math.inf) -> Callable[[str], float]:
    """Returns a parser of numbers of type `kind` from `low` to `high`, for argparse."""

    def parse(text: str) -> float:
        noun = "a whole number" if kind is int else "a number"
        limits = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun}") from None
        if not (low <= value <= high) or value == math.inf:
            raise argparse.ArgumentTypeError(f"must be {noun}, {limits}, not {text}")
        return value

    return parse


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fusedopt.train",
        usage="%(prog)s [options]",
        description="Trains a small network on scikit-learn's digits with one of fusedopt's "
        "optimizers, and says what share of the time the optimizer took.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", choices=MODELS, default="resnet20", help="the network")
    add("--optimizer", choices=tuple(DEFAULTS), default="adamw", help="the optimizer")
    add(
        "--impl",
        choices=("fusedopt", "torch"),
        default="fusedopt",
        help="whose implementation of the optimizer: ours or torch.optim's",
    )
    zero_up, one_up, fraction = _number(float, 0), _number(int, 1), _number(float, 0, 1)
    own = "the default depends on the optimizer"
    add("--lr", type=zero_up, default=argparse.SUPPRESS, help=f"learning rate; {own}")
    add("--weight-decay", type=zero_up, default=argparse.SUPPRESS, help=f"weight decay; {own}")
    add("--momentum", type=zero_up, default=argparse.SUPPRESS, help="of sgd or rmsprop")
    add("--gamma", type=fraction, default=0.85, help="each epoch multiplies lr by this")
    add("--epochs", type=one_up, default=20, help="epochs in all, those of --resume included")
    add("--batch-size", type=one_up, default=64, help="images per step")
    add("--seed", type=_number(int, 0, 2**32 - 1), default=0, help="of split, weights, order")
    add("--threads", type=one_up, default=argparse.SUPPRESS, help="CPU threads; torch's default")
    add("--device", default="cpu", help="where to train; only cpu so far")
    add(
        "--checkpoint",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="PATH",
        help="write everything that resuming needs to PATH after each epoch",
    )
    add(
        "--resume",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="PATH",
        help="continue from the checkpoint PATH: bit for bit, given the same options and --threads",
    )
    return parser


def parse_options(argv: Sequence[str] | None, parser: argparse.ArgumentParser) -> Options:
    """Returns the checked options.

    Args:
        argv: the arguments, or None for those of the process.
        parser: what `make_parser` returns.

    Raises:
        UserError: options that don't go together, or can't work on this machine.
    """
    given = vars(parser.parse_args(argv))
    defaults = DEFAULTS[given["optimizer"]]
    if "momentum" in given and "momentum" not in defaults:
        raise UserError(f"--momentum: {given['optimizer']} has none; sgd and rmsprop do")
    if given["device"] != "cpu":
        raise UserError(f"--device: {given['device']!r} is not available here; 'cpu' is")
    if "checkpoint" in given:
        _check_writable(given["checkpoint"])
    return Options(**{field.name: None for field in fields(Options)} | defaults | given)


def _check_writable(path: Path) -> None:
    """Raises a `UserError` where no checkpoint can be written, before any time is spent."""
    folder = path.parent
    if path.is_dir():
        raise UserError(f"--checkpoint: {path} is a folder; name a file")
    if not folder.is_dir():
        raise UserError(f"--checkpoint: the folder {folder} doesn't exist")
    if not os.access(folder, os.W_OK):
        raise UserError(f"--checkpoint: the folder {folder} can't be written to")


def main(argv: Sequence[str] | None = None) -> Result:
    """Trains as the command line says, and prints what came out.

    Args:
        argv: the arguments, or None for those of the process.

    Returns:
        The trained model, the test accuracy, and what the optimizer took of the time.

    Raises:
        SystemExit: after a one-line message, with status 2 for bad input and 130 for Ctrl-C.

    Example:
        >>> main(["--model", "lenet", "--epochs", "1"]).test_accuracy  # doctest: +SKIP
    """
    parser = make_parser()
    try:
        options = parse_options(argv, parser)
        from fusedopt.train.run import run  # here, because it needs fusedopt[train]

        return run(options)
    except UserError as error:
        parser.error(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("sklearn", "tqdm"):
            raise
        parser.error(f"training needs {error.name}: pip install 'fusedopt[train]'")
    except KeyboardInterrupt:
        parser.exit(130, "\ninterrupted: --resume continues from the last --checkpoint, if any\n")
