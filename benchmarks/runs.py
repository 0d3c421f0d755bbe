"""Repeating a measurement in fresh processes, and merging what they found."""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Record, Row, load
from fusedopt.train.parsers import too_many_threads


def repeat(
    record: Record, module: str, arguments: Sequence[str], runs: int, key: Sequence[str]
) -> None:
    """Runs a command in fresh processes, and records the median of their numbers after each.

    Args:
        record: Where the rows go.
        module: The command, a module of this package.
        arguments: Its arguments. Of those that are repeated the last one counts.
        runs: How many processes.
        key: The fields that tell rows apart.

    Raises:
        SystemExit: One of them failed; it has said why.
    """
    found: list[list[Row]] = []
    with tempfile.TemporaryDirectory() as folder:
        for run in range(runs):
            path = Path(folder) / f"{run}.json"
            print(f"\nRun {run + 1} of {runs}", flush=True)
            once = ["--runs", "1", "--json", str(path), "--seed", str(run)]
            command = [sys.executable, "-m", f"benchmarks.{module}"]
            try:
                done = subprocess.run([*command, *arguments, *once])
            finally:  # a run that was stopped has left the cases that it finished
                if path.exists():
                    found.append(load(path)["rows"])
                    record.replace(merge(found, key))
            if done.returncode == 130:
                raise KeyboardInterrupt
            if done.returncode:
                raise SystemExit(done.returncode)


def number(kind: Callable[[str], float], least: float, below: float = 1e9) -> Callable[[str], Any]:
    """A type for argparse: a number that is not too small, and finite."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
        if not least <= value < below:
            raise argparse.ArgumentTypeError(f"{text} is not at least {least:g}")
        return value

    return parse


def threads(text: str) -> int:
    """A type for argparse: a number of threads that the system can be asked for."""
    count = number(int, 1)(text)
    if reason := too_many_threads(count):
        raise argparse.ArgumentTypeError(f"{text} {reason}")
    return count


def png(text: str) -> Path:
    """A type for argparse: a chart's file that can be written, rather than after a measurement."""
    path = Path(text)
    if importlib.util.find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("needs matplotlib: pip install matplotlib")
    if path.suffix.lower() != ".png" or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no name of a PNG file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):  # root's rights say nothing in /proc
            return path
    except OSError as error:
        raise argparse.ArgumentTypeError(f"can't write {text}: {error}") from None


def merge(runs: Sequence[Sequence[Row]], key: Sequence[str]) -> list[Row]:
    """Merges the rows of several runs: of each number the median.

    Args:
        runs: The rows of each run. One that was stopped lacks some.
        key: The fields that tell rows apart.
    """
    by_key: dict[tuple[Any, ...], list[Row]] = {}
    for rows in runs:
        for row in rows:
            by_key.setdefault(tuple(row[name] for name in key), []).append(row)
    merged = []
    for same in by_key.values():
        row = _median_of(same)
        row["runs"] = len(same)
        ratios = [other["ratio"]["median"] for other in same if other.get("ratio")]
        if ratios:
            row["ratio_of_runs"] = [min(ratios), max(ratios)]
        merged.append(row)
    return merged


def _median_of(values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    if not known:
        return None
    if isinstance(known[0], dict):
        keys = dict.fromkeys(key for value in known for key in value)
        return {key: _median_of([value.get(key) for value in known]) for key in keys}
    if isinstance(known[0], int | float) and not isinstance(known[0], bool):
        return known[0] if len(set(known)) == 1 else statistics.median(known)
    return statistics.mode(known) if not isinstance(known[0], list) else known[0]
