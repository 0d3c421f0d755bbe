"""Runs a program with each implementation, by turns, and says what became of it."""

from __future__ import annotations

import gc
import importlib
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.programs import (
    gaussian,
    graph,
    images,
    language,
    reinforced,
    tabular,
)
from benchmarks.programs.program import (
    CLASS,
    FUSED,
    TORCH,
    Program,
    Side,
    Stopwatch,
    fastest_path,
)
from benchmarks.results import Row
from benchmarks.timing import Spread

CASE = ("program", "threads", "quick")
QUICK = 0.1  # of a program's length
PROGRAMS: dict[str, Program] = {
    program.name: program
    for module in (reinforced, tabular, language, graph, gaussian, images)
    for program in module.PROGRAMS
}


def absent(program: Program) -> str:
    """Says which libraries a program lacks, or nothing."""
    return f"needs {' and '.join(program.missing)}: not installed" if program.missing else ""


def measure(program: Program, repeats: int, quick: bool) -> list[Row]:
    """Runs a program with all its implementations.

    The optimizer phase is timed in runs of their own, which come first and warm up: nothing is
    wrapped in the runs whose time counts. In each repeat all implementations have a turn, in random
    order, with the same seed.

    Args:
        program: Which one.
        repeats: How many seeds.
        quick: Run a tenth of it.

    Returns:
        A row for each implementation; where a library is missing, one that names it.
    """
    head: Row = {"program": program.name, "threads": torch.get_num_threads(), "quick": quick}
    if program.missing:
        return [{**head, "implementation": CLASS, "status": absent(program)}]
    scale = QUICK if quick else 1.0
    part = min(scale, program.profiled)
    try:
        shares = {side: _share(program, side, part) for side in program.sides}
    except ImportError as error:  # of a library that a library needs
        return [{**head, "implementation": CLASS, "status": f"{type(error).__name__}: {error}"}]
    times: dict[str, dict[str, list[float]]] = {side: {} for side in program.sides}
    results: dict[str, list[float]] = {side: [] for side in program.sides}
    order, shuffle = list(program.sides), random.Random(0).shuffle
    for seed in range(repeats):
        shuffle(order)
        for side in order:
            seconds, result = _run(program, side, seed, scale)
            results[side].append(result)
            for part, value in seconds.items():
                times[side].setdefault(part, []).append(value)
    libraries = _versions(program)
    return [
        {
            **head,
            "implementation": side,
            "path": fastest_path(program.optimizer) if side == FUSED else "",
            "libraries": libraries,
            **_speed(times, side),
            "share": shares[side],
            "result": _range(results[side]),
        }
        for side in program.sides
    ]


def _run(program: Program, side: str, seed: int, scale: float) -> tuple[dict[str, float], float]:
    """The seconds of the whole, whose name is empty, and of its parts; and the final figure."""
    run = program.make(Side(side), seed, scale)
    gc.collect()
    start = time.perf_counter()
    run.train()
    seconds = {"": time.perf_counter() - start}
    seconds |= {part: stopwatch.seconds for part, stopwatch in run.parts.items()}
    return seconds, run.result()


def _share(program: Program, side: str, scale: float) -> float:
    """The optimizer phase's share of the time."""
    stopwatch = Stopwatch()
    run = program.make(Side(side, stopwatch), 0, scale)
    start = time.perf_counter()
    run.train()
    return stopwatch.seconds / (time.perf_counter() - start)


def _speed(times: dict[str, dict[str, list[float]]], side: str) -> dict[str, Any]:
    """Times of the whole and of its parts, and how many times longer torch's two take."""
    found: dict[str, Any] = {}
    for part, own in times[side].items():
        entry: dict[str, Any] = {"seconds": vars(Spread.of(own))}
        if side != TORCH:
            entry["ratio"] = vars(Spread.of_ratios(times[TORCH][part], own))
        if side not in (TORCH, FUSED):
            entry["fused_ratio"] = vars(Spread.of_ratios(times[FUSED][part], own))
        if part:
            found.setdefault("parts", {})[part] = entry
        else:
            found.update(entry)
    return found


def _range(values: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values),
            "seeds": len(values)}  # fmt: skip


def _versions(program: Program) -> str:
    """The libraries' versions."""
    modules = {name: importlib.import_module(name) for name in program.needs}
    return ", ".join(f"{name} {module.__version__}" for name, module in modules.items())
