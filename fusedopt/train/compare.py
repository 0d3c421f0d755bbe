"""Trains with several optimizers side by side: `python -m fusedopt.train compare`."""

from __future__ import annotations

import argparse
import io
import itertools
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusedopt.train import checkpoint
from fusedopt.train.charts import draw_comparison
from fusedopt.train.claim import lock, require_own
from fusedopt.train.data import Splits
from fusedopt.train.flags import HelpFormatter, add_options
from fusedopt.train.folder import require_free, write_csv
from fusedopt.train.interrupts import Interrupted
from fusedopt.train.loop import optimizer_class
from fusedopt.train.optimizers import ALL_OPTIONS, CLASSES, has_option, learning_rates
from fusedopt.train.options import (
    MODES,
    Diverged,
    Options,
    UserError,
    make_options,
    no_option,
)
from fusedopt.train.run import open_folder, train
from fusedopt.train.source import find_splits, load_splits
from fusedopt.train.start import start
from fusedopt.train.state import Row
from fusedopt.train.world import say

CHART, TABLE, METRICS = "compare.png", "compare.csv", "metrics.csv"
HEAD = ("optimizer", "impl", "training loss", "validation loss", "validation accuracy", "seconds",
        "in the optimizer", "per step")  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command's options: those of a run, but for several optimizers."""
    parser = argparse.ArgumentParser(
        prog="python -m fusedopt.train compare",
        usage="%(prog)s [options]",
        description="Trains one model on one data set with several optimizers, ours and torch's,"
        " from the same weights and with the same batches. The test set is left alone. The same"
        " command again continues what was interrupted.",
        formatter_class=HelpFormatter,
        argument_default=argparse.SUPPRESS,
        epilog=learning_rates(),
    )
    add_options(parser, several=True)
    parser.set_defaults(out=Path("compare"))
    return parser


def compare(arguments: argparse.Namespace) -> None:
    """Trains with each optimizer and implementation, and writes a table and a chart.

    Args:
        arguments: what `make_parser`'s parser made of the command line.

    Raises:
        UserError: the options can't work, or a file can't be read or written.
        Interrupted: Ctrl-C.
    """
    given = vars(arguments)
    out, optimizers, impls, modes = (
        given.pop(name) for name in ("out", "optimizers", "impl", "precision")
    )
    of_some = {key: given.pop(key) for key in ALL_OPTIONS if given.get(key) is not None}
    for key in of_some:
        if not any(has_option(name, key) for name in optimizers):
            raise no_option(key, "none of these optimizers has one")
    runs: dict[tuple[str, str], tuple[Options, dict[str, Any] | None]] = {}
    for optimizer, impl, mode in itertools.product(optimizers, impls, modes):
        if impl == "torch" and len(MODES[mode]) > 1:
            say(f"{mode} is left out with torch: torch.optim has none")
            continue
        name = f"{optimizer}-{impl}" + f"-{mode}" * (len(modes) > 1)
        own = {"optimizer": optimizer, "impl": impl, "out": out / name, **MODES[mode]}
        own |= {key: value for key, value in of_some.items() if has_option(optimizer, key)}
        options = make_options(given | own)
        if optimizer_class(options, impl) is None:
            say(f"{optimizer} is left out with torch: torch.optim has no {CLASSES[optimizer]}")
        else:
            runs[optimizer + f" {mode}" * (len(modes) > 1), impl] = _continued(options)
    if not runs:
        raise UserError("--impl torch: torch.optim has none of these optimizers and precisions")
    require_own(out, "comparison")
    splits = _splits(list(runs.values()))
    rows: dict[tuple[str, str], list[Row]] = {}
    diverged: dict[tuple[str, str], int] = {}
    with ExitStack() as stack:
        for key, (options, content) in runs.items():
            with _out_named():
                state = start(options, splits, content)
            if not rows:  # a bad option would have shown by now
                stack.enter_context(lock(out, "comparison"))
            try:
                with open_folder(options, state) as folder:
                    train(options, splits, state, folder)
            except Interrupted:
                raise Interrupted("interrupted; the same command again goes on") from None
            except Diverged as error:  # a result, too
                say(str(error))
                diverged[key] = error.step
            rows[key] = state.rows
            say("")
        _write(out, rows, diverged)


def _splits(runs: list[tuple[Options, dict[str, Any] | None]]) -> Splits:
    """Returns the data of all runs; one that has begun before decides which images they are."""
    for options, content in runs:
        if content is not None:
            with _out_named():
                return find_splits(options, content)
    return load_splits(runs[0][0])


def _write(
    out: Path, rows: dict[tuple[str, str], list[Row]], diverged: dict[tuple[str, str], int]
) -> None:
    """Prints and writes the table, and writes all figures and the chart."""
    lines = [_line(*key, rows[key], diverged.get(key)) for key in rows]
    _print_table(lines)
    write_csv(out / TABLE, [dict(zip(HEAD, line, strict=True)) for line in lines])
    names = ("optimizer", "impl")
    write_csv(out / METRICS, [dict(zip(names, k, strict=True)) | r for k in rows for r in rows[k]])
    image = io.BytesIO()
    draw_comparison(rows, image, diverged)
    checkpoint.write_atomically(out / CHART, lambda file: file.write(image.getvalue()) and None)
    say(f"{out / CHART}, {out / TABLE}, {out / METRICS}")


def _continued(options: Options) -> tuple[Options, dict[str, Any] | None]:
    """Returns a run's options, and the content of its checkpoint where it has begun before."""
    if not (options.out / checkpoint.CHECKPOINT).exists():
        require_free(options.out)
        return options, None
    options = replace(options, resume=options.out)
    content = checkpoint.read(options.out, "--resume")
    with _out_named():
        checkpoint.check_options(content, options)
    return options, content


@contextmanager
def _out_named() -> Iterator[None]:
    """Errors of --resume are of --out here, where a run that has begun lies."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub("^--resume:", "--out:", str(error))) from error


def _line(optimizer: str, impl: str, rows: list[Row], diverged: int | None) -> list[str]:
    if diverged is not None:
        return [optimizer, impl, f"diverged at step {diverged}", *["-"] * (len(HEAD) - 3)]
    seconds, own = (sum(row[name] for row in rows) for name in ("seconds", "optimizer_seconds"))
    last = rows[-1]
    return [
        optimizer,
        impl,
        f"{last['train_loss']:.4f}",
        f"{last['validation_loss']:.4f}",
        f"{last['validation_accuracy']:.1%}",
        f"{seconds:.1f}",
        f"{own / seconds:.1%}",
        f"{own / last['step'] * 1e3:.3f} ms",
    ]


def _print_table(lines: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(HEAD, *lines, strict=True)]
    for line in [HEAD, *lines]:
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())
