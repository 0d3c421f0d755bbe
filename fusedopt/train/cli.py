"""The training script's command line: which command, and one line for each error."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fusedopt.train import world
from fusedopt.train.flags import HelpFormatter, add_options
from fusedopt.train.interrupts import Interrupted
from fusedopt.train.optimizers import learning_rates
from fusedopt.train.options import Failed, OneProcessError, Options, UserError, make_options

if TYPE_CHECKING:
    from fusedopt.train.run import Result

COMMANDS = ("compare", "evaluate", "predict")  # modules, each with a function of its name
EXTRA = ("sklearn", "tqdm", "numpy", "tensorboard", "matplotlib", "PIL")


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of a training run's command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fusedopt.train",
        usage="%(prog)s [options]\n       %(prog)s compare|evaluate|predict --help",
        description="Trains an image classifier with one of fusedopt's optimizers, and says what"
        " share of the time the optimizer took.",
        formatter_class=HelpFormatter,
        argument_default=argparse.SUPPRESS,
        epilog=learning_rates(),
    )
    add_options(parser)
    return parser


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[Options, dict[str, Any] | None]:
    """Returns the checked options, and the content of the checkpoint to continue, or None.

    A resumed run has the options of before, unless the command line says otherwise.

    Raises:
        UserError: options that don't go together, or can't work on this machine.
    """
    given = vars(parser.parse_args(argv))
    if world.restarted() and "out" in given:
        from fusedopt.train.checkpoint import CHECKPOINT

        if (given["out"] / CHECKPOINT).exists():
            argv = [*argv, "--resume", str(given["out"])]
            given = vars(parser.parse_args(argv))
    if "resume" not in given:
        return make_options(given), None
    from fusedopt.train import checkpoint  # here, because it needs fusedopt[train]

    if given["resume"].is_file():
        raise UserError(f"--resume: {given['resume']} is a file; name the run's folder")
    content = checkpoint.read(given["resume"], "--resume")
    saved = {
        k: v
        for k, v in content["options"].items()
        if v is not None and k not in ("out", "strategy")
    }
    saved["scheduler_arg"] = list(saved["scheduler_arg"])
    parser.set_defaults(**saved)
    options = make_options(vars(parser.parse_args(argv)))
    checkpoint.check_options(content, options)
    return options, content


def main(argv: Sequence[str] | None = None) -> Result | None:
    """Trains, compares, evaluates or predicts as the command line says, and prints what came out.

    Args:
        argv: the arguments, or None for those of the process.

    Returns:
        What a training run came to; None for the other commands.

    Raises:
        SystemExit: after a one-line message, with status 1 where images can't be read or training
            diverges, 2 for bad input, and 130 for Ctrl-C.

    Example:
        >>> main(["--model", "lenet", "--epochs", "1"]).test.accuracy  # doctest: +SKIP
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else ""
    parser = argparse.ArgumentParser(f"python -m fusedopt.train {command}")
    try:  # what is imported here needs fusedopt[train]
        if command in COMMANDS and world.launched():
            raise UserError("this runs in one process: start it without torchrun")
        if command in COMMANDS:
            module = importlib.import_module(f"fusedopt.train.{command}")
            parser = module.make_parser()
            return getattr(module, command)(parser.parse_args(arguments[1:]))
        parser = make_parser()
        options, content = parse(parser, arguments)
        from fusedopt.train.run import run

        with world.join(options.device):
            return run(options, content)
    except UserError as error:
        if world.rank() > 0:  # the first one says it
            parser.exit(2)
        parser.error(str(error))
    except Failed as error:
        says = world.rank() == 0 or isinstance(error, OneProcessError)
        parser.exit(1, f"{parser.prog}: {error}\n" if says else None)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in EXTRA:
            raise
        parser.error(f"training needs {error.name}: pip install 'fusedopt[train]'")
    except BrokenPipeError:  # of `predict ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Interrupted as error:
        parser.exit(130, f"{error}\n" if world.rank() == 0 else None)
    except KeyboardInterrupt:
        then = "" if command in COMMANDS else "; nothing new was kept"
        parser.exit(130, f"\ninterrupted{then}\n")
