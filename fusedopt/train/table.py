"""The table of a comparison: means over seeds, and how much they vary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev

from fusedopt.train.state import Row
from fusedopt.train.world import say

HEAD = ("optimizer", "impl", "seeds", "training loss", "validation loss", "validation accuracy",
        "best accuracy", "seconds", "in the optimizer", "per step")  # fmt: skip

Key = tuple[str, str]  # optimizer, and the way to store numbers if there are several; impl
Seeds = Mapping[int, Sequence[Row]]  # of each seed the run's rows


def table_line(key: Key, seeds: Seeds, diverged: Mapping[int, int]) -> list[str]:
    """Returns the cells of one optimizer and implementation.

    Args:
        key: which they are.
        seeds: the rows of all its runs.
        diverged: of the seeds whose run has diverged the step.
    """
    runs = [rows for seed, rows in seeds.items() if seed not in diverged]
    count = f"{len(runs)} of {len(seeds)}" if diverged else str(len(runs))
    if not runs:
        step = next(iter(diverged.values()))
        return [*key, count, f"diverged at step {step}", *["-"] * (len(HEAD) - 4)]

    def cell(value: Callable[[Sequence[Row]], float], form: str, unit: str = "") -> str:
        values = [value(rows) for rows in runs]
        text = f"{mean(values):{form}}"
        return text + (f" ± {stdev(values):{form}}" if len(values) > 1 else "") + unit

    def total(rows: Sequence[Row], name: str) -> float:
        return sum(row[name] for row in rows)

    def own(rows: Sequence[Row]) -> float:
        return total(rows, "optimizer_seconds")

    return [
        *key,
        count,
        cell(lambda rows: rows[-1]["train_loss"], ".4f"),
        cell(lambda rows: rows[-1]["validation_loss"], ".4f"),
        cell(lambda rows: rows[-1]["validation_accuracy"], ".1%"),
        cell(lambda rows: max(row["validation_accuracy"] for row in rows), ".1%"),
        cell(lambda rows: total(rows, "seconds"), ".1f"),
        cell(lambda rows: own(rows) / total(rows, "seconds"), ".1%"),
        cell(lambda rows: own(rows) / rows[-1]["step"] * 1e3, ".3f", " ms"),
    ]


def print_table(lines: Sequence[Sequence[str]]) -> None:
    """Prints the table with its head."""
    widths = [max(map(len, column)) for column in zip(HEAD, *lines, strict=True)]
    for line in [HEAD, *lines]:
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())


def over_seeds(
    runs: Sequence[Sequence[Row]], pick: Callable[[Sequence[float]], float]
) -> list[Row]:
    """Returns for each epoch what `pick` makes of the figures of all runs that have it."""
    longest = max(map(len, runs), default=0)
    epochs = [[rows[i] for rows in runs if i < len(rows)] for i in range(longest)]
    return [{name: pick([row[name] for row in rows]) for name in rows[0]} for rows in epochs]
