"""Draws how the optimizers descend on two functions: `python -m benchmarks.landscapes`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fusedopt
from benchmarks import landscape_charts, results, runs, tables
from benchmarks.descents import (
    DESCENTS,
    FUNCTIONS,
    RANGES,
    STEPS,
    TOLERANCES,
    Descent,
    Function,
    final_losses,
    groups,
    trajectory,
)
from benchmarks.results import Row
from benchmarks.timing import CpuClock, Spread, interleave

DOCS = Path(__file__).resolve().parents[1] / "docs"
CASE = ("kind", "function", "optimizer", "range")
MOST = 5  # times that a step over one-tensor groups may cost


def trajectory_row(function: Function, descent: Descent, ours: Tensor, theirs: Tensor) -> Row:
    """Where a descent ended, and how far ours was from torch's where they were farthest apart."""
    end = ours[-1]
    return {
        "kind": "trajectory", "function": function.name, "optimizer": descent.name, "range": None,
        "lr": descent.lr[function.name], "options": dict(descent.options),
        "decays": descent.decays, "steps": len(ours) - 1, "end": end.tolist(),
        "loss": float(function.value(*end)) - function.minimum,
        "distance": float((ours - theirs).norm(dim=1).max()),
    }  # fmt: skip


def tolerance_row(function: Function, name: str, rates: Sequence[float], losses: Tensor) -> Row:
    """The best learning rate of a curve, and for how many of them the descent went well or badly.

    Shares are of all rates: `near` ends at most 1 % of the start's height above the best end of
    this curve, `worse` above the start, or nowhere at all.
    """
    height = float(function.value(*torch.tensor(function.start, dtype=torch.float64)))
    height -= function.minimum
    known = losses.nan_to_num(torch.inf, torch.inf)
    best = int(known.argmin())
    return {
        "kind": "tolerance", "function": function.name, "optimizer": name, "range": rates[-1],
        "rates": len(rates), "best_lr": rates[best], "best_loss": float(known[best]),
        "near": float((known <= known[best] + 0.01 * height).double().mean()),
        "worse": float((~(known <= height)).double().mean()),
    }  # fmt: skip


def group_row(descent: Descent, count: int, seconds: float) -> Row:
    """Times a step over many one-tensor groups, over one group of as many, and torch's over many.

    Tensors have two elements in float64; the gradients are zeros, so that nothing moves.
    """
    rates = torch.linspace(0.0, RANGES[-1], count, dtype=torch.float64).tolist()
    points = torch.ones(3, count, 2, dtype=torch.float64)
    many = groups(descent, fusedopt, points[0], rates)
    theirs = groups(descent, torch.optim, points[1], rates)
    one = descent.make(fusedopt, [torch.nn.Parameter(row) for row in points[2]], lr=rates[-1])
    made = {"one_group": one, "groups": many, "torch_groups": theirs}
    for optimizer in made.values():
        for param in (p for group in optimizer.param_groups for p in group["params"]):
            param.grad = torch.zeros_like(param)
    samples = interleave({name: o.step for name, o in made.items()}, CpuClock(), seconds)
    times = {name: vars(Spread.of(each.seconds)) for name, each in samples.items()}
    ratio = Spread.of_ratios(samples["groups"].seconds, samples["one_group"].seconds)
    return {
        "kind": "groups", "function": None, "optimizer": descent.name, "range": None,
        "groups": count, "seconds": times, "ratio": vars(ratio),
    }  # fmt: skip


def trajectory_table(rows: Sequence[Row]) -> list[list[str]]:
    """One line per optimizer and function."""
    head = ["trajectory", "function", "learning rate", "ends at", "above the minimum",
            "farthest from torch's"]  # fmt: skip
    return [head, *(
        [row["optimizer"], row["function"], f"{row['lr']:g}",
         "({:.3f}, {:.3f})".format(*row["end"]), f"{row['loss']:.1e}", f"{row['distance']:.1e}"]
        for row in rows if row["kind"] == "trajectory"
    )]  # fmt: skip


def tolerance_table(rows: Sequence[Row]) -> list[list[str]]:
    """One line per function, range and optimizer."""
    head = ["learning rates", "function", "0 to", "best", "above the minimum there",
            "about as good", "worse than the start"]  # fmt: skip
    return [head, *(
        [row["optimizer"], row["function"], f"{row['range']:g}", f"{row['best_lr']:.3g}",
         f"{row['best_loss']:.1e}", f"{row['near']:.0%}", f"{row['worse']:.0%}"]
        for row in rows if row["kind"] == "tolerance"
    )]  # fmt: skip


def group_table(rows: Sequence[Row]) -> list[list[str]]:
    """One line per optimizer."""
    measured = [row for row in rows if row["kind"] == "groups"]
    count = f"{measured[0]['groups']}" if measured else "many"
    head = ["a step over", f"one group of {count}", f"{count} groups of one", "ratio (p10–p90)",
            f"torch's, {count} groups of one"]  # fmt: skip
    lines = [head]
    for row in measured:
        times = {name: tables.seconds_text(s["median"]) for name, s in row["seconds"].items()}
        ratio = {name: tables.digits(value) for name, value in row["ratio"].items()}
        verdict = "" if row["ratio"]["median"] <= MOST else f" > {MOST}"
        lines.append([row["optimizer"], times["one_group"], times["groups"],
                      f"{ratio['median']}{verdict} ({ratio['p10']}–{ratio['p90']})",
                      times["torch_groups"]])  # fmt: skip
    return lines


def follow(steps: int) -> tuple[dict[str, Any], list[Row]]:
    """All trajectories, ours beside torch's."""
    paths: dict[str, Any] = {}
    rows = []
    for function in FUNCTIONS.values():
        for descent in DESCENTS.values():
            both = [trajectory(function, descent, m, steps) for m in (fusedopt, torch.optim)]
            paths[function.name, descent.name] = both
            rows.append(trajectory_row(function, descent, *both))
    return paths, rows


def try_rates(count: int, steps: int) -> tuple[dict[str, Any], list[Row]]:
    """All curves of the final loss against the learning rate."""
    curves: dict[str, Any] = {}
    rows = []
    for function in FUNCTIONS.values():
        for end in RANGES:
            rates = torch.linspace(0.0, end, count, dtype=torch.float64).tolist()
            for name in TOLERANCES:
                losses = final_losses(function, DESCENTS[name], fusedopt, rates, steps)
                curves[function.name, end, name] = (rates, losses.tolist())
                rows.append(tolerance_row(function, name, rates, losses))
    return curves, rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        "python -m benchmarks.landscapes",
        description="Draws trajectories on two functions of two variables, ours over torch's, and "
        "final losses against the learning rate, where each rate is a parameter group of its own; "
        "and times a step over that many groups.",
    )
    parser.add_argument("--folder", type=Path, default=DOCS, help="for the PNGs (default: docs)")
    parser.add_argument(
        "--steps", type=runs.number(int, 1), default=STEPS, help=f"(default: {STEPS})"
    )
    parser.add_argument(
        "--rates", type=runs.number(int, 2), default=1000, help="learning rates (default: 1000)"
    )
    parser.add_argument(
        "--seconds", type=runs.number(float, 0), default=1.0,
        help="to time each optimizer's groups (default: 1)",
    )  # fmt: skip
    results.add_json(parser)
    options = parser.parse_args(arguments)
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--folder: {error}")
    with results.recording(parser, "landscapes", arguments, options.json, CASE) as record:
        paths, rows = follow(options.steps)
        curves, more = try_rates(options.rates, options.steps)
        record.add([*rows, *more])
        print(tables.align(trajectory_table(rows)), end="\n\n")
        print(f"  greatest distance: {max(row['distance'] for row in rows):.1e}\n")
        print(tables.align(tolerance_table(more)), end="\n\n")
        for name in landscape_charts.draw(paths, curves, options.folder):
            print(f"  {options.folder / name}")
        timed = [
            group_row(descent, options.rates, options.seconds)
            for descent in DESCENTS.values()
            if not descent.decays
        ]
        record.add(timed)
        print(f"\n{tables.align(group_table(timed))}")


if __name__ == "__main__":
    main()
