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
from statistics import fmean
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
from fusedopt.train.state import Row, TrainingState
from fusedopt.train.table import HEAD, Key, over_seeds, print_table, table_line
from fusedopt.train.world import say

CHART, TABLE, METRICS = "compare.png", "compare.csv", "metrics.csv"
LAST_SEED = 2**32 - 1


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
    out, seeds = given.pop("out"), range(given["seed"], given["seed"] + given.pop("seeds"))
    if seeds[-1] > LAST_SEED:
        raise UserError(f"--seeds: there is no seed above {LAST_SEED}")
    runs = _make_runs(given, out, seeds)
    require_own(out, "comparison")
    rows: dict[Key, dict[int, list[Row]]] = {key: {} for key in runs}
    diverged: dict[Key, dict[int, int]] = {key: {} for key in runs}
    with ExitStack() as stack:
        for i, seed in enumerate(seeds):
            splits = _splits([own[i] for own in runs.values()])
            for key, own in runs.items():
                options = own[i]
                with _out_named():
                    state = start(options, splits, _content(options))
                if not any(rows.values()):  # a bad option would have shown by now
                    stack.enter_context(lock(out, "comparison"))
                step = _train(options, splits, state)
                rows[key][seed] = state.rows
                if step is not None:
                    diverged[key][seed] = step
        some = next(iter(runs.values()))[0]
        _write(out, rows, diverged, f"{some.model} on {some.data}")


def _make_runs(given: dict[str, Any], out: Path, seeds: range) -> dict[Key, list[Options]]:
    """Returns the options of all runs, those of each optimizer by seed."""
    optimizers, impls, modes = (given.pop(name) for name in ("optimizers", "impl", "precision"))
    lrs = given.pop("lr", None) or {}
    for name in lrs.keys() - {None, *optimizers}:
        raise UserError(f"--lr: {name} is not among the optimizers that are compared")
    of_some = {key: given.pop(key) for key in ALL_OPTIONS if given.get(key) is not None}
    for key in of_some:
        if not any(has_option(name, key) for name in optimizers):
            raise no_option(key, "none of these optimizers has one")
    runs: dict[Key, list[Options]] = {}
    for optimizer, impl, mode in itertools.product(optimizers, impls, modes):
        if impl == "torch" and len(MODES[mode]) > 1:
            say(f"{mode} is left out with torch: torch.optim has none")
            continue
        own = {"optimizer": optimizer, "impl": impl, **MODES[mode]}
        own |= {key: value for key, value in of_some.items() if has_option(optimizer, key)}
        own["lr"] = lrs.get(optimizer, lrs.get(None))
        several = f"-{mode}" * (len(modes) > 1)
        every = [
            make_options(
                given | own | {"seed": i, "out": out / f"{optimizer}-{impl}{several}-seed{i}"}
            )
            for i in seeds
        ]
        if optimizer_class(every[0], impl) is None:
            say(f"{optimizer} is left out with torch: torch.optim has no {CLASSES[optimizer]}")
        else:
            key = optimizer + f" {mode}" * (len(modes) > 1), impl
            runs[key] = [_continued(options, given) for options in every]
    if not runs:
        raise UserError("--impl torch: torch.optim has none of these optimizers and precisions")
    return runs


def _train(options: Options, splits: Splits, state: TrainingState) -> int | None:
    """Trains, and returns the step at which the run has diverged: that is a result, too."""
    try:
        with open_folder(options, state) as folder:
            train(options, splits, state, folder)
    except Interrupted:
        raise Interrupted("interrupted; the same command again goes on") from None
    except Diverged as error:
        say(str(error))
        return error.step
    finally:
        say("")
    return None


def _splits(runs: list[Options]) -> Splits:
    """Returns the data of all runs; one that has begun before decides which images they are."""
    for options in runs:
        content = _content(options)
        if content is not None:
            with _out_named():
                return find_splits(options, content)
    return load_splits(runs[0])


def _write(
    out: Path,
    rows: dict[Key, dict[int, list[Row]]],
    diverged: dict[Key, dict[int, int]],
    title: str,
) -> None:
    """Prints and writes the table, and writes all figures and the chart."""
    lines = [table_line(key, rows[key], diverged[key]) for key in rows]
    print_table(lines)
    seeds = list(next(iter(rows.values())))
    if len(seeds) > 1:
        *first, last = map(str, seeds)
        say(f"mean ± standard deviation over the seeds {', '.join(first)} and {last}")
    for (optimizer, impl), steps in diverged.items():
        for seed, step in steps.items():
            say(f"{optimizer}, {impl}, seed {seed}: diverged at step {step}")
    write_csv(out / TABLE, [dict(zip(HEAD, line, strict=True)) for line in lines])
    figures = [
        {"optimizer": optimizer, "impl": impl, "seed": seed} | row
        for (optimizer, impl), runs in rows.items()
        for seed, own in runs.items()
        for row in own
    ]
    write_csv(out / METRICS, figures)
    named = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    _draw(out / CHART, rows, diverged, f"{title}, {named}")
    say(f"{out / CHART}, {out / TABLE}, {out / METRICS}")


def _draw(
    path: Path,
    rows: dict[Key, dict[int, list[Row]]],
    diverged: dict[Key, dict[int, int]],
    title: str,
) -> None:
    """Draws means over the seeds that haven't diverged, and the range of their figures."""
    lost = {key for key, runs in rows.items() if len(diverged[key]) == len(runs)}
    drawn = {
        key: [own for seed, own in runs.items() if key in lost or seed not in diverged[key]]
        for key, runs in rows.items()
    }
    means = {key: over_seeds(runs, fmean) for key, runs in drawn.items()}
    ranges = {
        key: (over_seeds(runs, min), over_seeds(runs, max))
        for key, runs in drawn.items()
        if len(runs) > 1
    }
    image = io.BytesIO()
    draw_comparison(means, image, lost, ranges, title)
    checkpoint.write_atomically(path, lambda file: file.write(image.getvalue()) and None)


def _continued(options: Options, given: dict[str, Any]) -> Options:
    """Returns a run's options; where it has begun before, they say so, and are those of then."""
    if not (options.out / checkpoint.CHECKPOINT).exists():
        require_free(options.out)
        return options
    options = replace(options, resume=options.out)
    content = _content(options)
    if given.get("warmup") is None:  # its default depends on the epochs, which may be more now
        options = replace(options, warmup=content["options"]["warmup"])
    with _out_named():
        checkpoint.check_options(content, options)
    return options


def _content(options: Options) -> dict[str, Any] | None:
    """Returns the content of a run's checkpoint, where it has begun before.

    It is read when it is needed: those of all runs together may not fit in memory.
    """
    return None if options.resume is None else checkpoint.read(options.resume, "--resume")


@contextmanager
def _out_named() -> Iterator[None]:
    """Errors of --resume are of --out here, where a run that has begun lies."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub("^--resume:", "--out:", str(error))) from error
