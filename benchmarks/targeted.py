"""Measuring what the targets compare, and no more: `python -m benchmarks.step --targets`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from benchmarks import results, runs
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.measure import CASE, KEY
from benchmarks.results import Record, Row
from benchmarks.targets import TARGETS, Target, ours

_Case = tuple[str, str, str]  # workload, dtype, optimizer


def wanted(rows: Sequence[Row], least_runs: int) -> Iterator[tuple[_Case, list[str]]]:
    """The cases of the CPU's targets that a result file doesn't have yet.

    Args:
        rows: What it has.
        least_runs: A case of fewer is not there.

    Yields:
        Workload, dtype and optimizer, and the implementations that have to be measured beside ours.
    """
    known = ours(rows)
    cases: dict[_Case, list[Target]] = {}
    for target in TARGETS:
        for optimizer in target.bounds if target.workload != "training" else ():
            cases.setdefault((target.workload, target.dtype, optimizer), []).append(target)
    for case, targets in cases.items():
        if known.get(case, {}).get("runs", 0) < least_runs:
            yield case, _implementations(case[2], targets)


def _implementations(optimizer: str, targets: Sequence[Target]) -> list[str]:
    """What the targets' ratio is to: torch's fused path, its best, or ours in another layout."""
    if any(target.measure == "layout" for target in targets):
        return ["fusedopt"]
    if all(optimizer in target.against_fused for target in targets):
        return ["fusedopt", "fused"]
    return ["fusedopt", *(name for name, each in IMPLEMENTATIONS.items() if each.is_torch)]


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Measures the cases in fresh processes, and writes the file after each run.

    What was stopped goes on with the same command.

    Raises:
        OSError, ValueError: The file can't be written or extended.
    """
    rows = results.load(options.json)["rows"] if options.json.exists() else []
    alike: dict[tuple[str, ...], list[str]] = {}  # one process does them all: its start takes long
    for (workload, dtype, optimizer), names in wanted(rows, options.runs):
        alike.setdefault((workload, dtype, *names), []).append(optimizer)
    for (workload, dtype, *names), optimizers in alike.items():
        record = Record(results.new_result("step", arguments), options.json, CASE)
        case = ["--workload", workload, "--dtype", dtype, "--optimizer", *optimizers]
        case += ["--implementation", *names, "--threads", "all", "--seconds", str(options.seconds)]
        runs.repeat(record, "step", case, options.runs, KEY)
