"""Errors against float64 after many steps: `python -m benchmarks.accuracy`."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from benchmarks import results, runs, tables
from benchmarks.implementations import IMPLEMENTATIONS, Absent, Implementation
from benchmarks.measure import DTYPES
from benchmarks.optimizers import OPTIMIZERS, Choice
from benchmarks.results import Row

ELEMENTS = 4096
CASE = ("optimizer", "dtype", "device")
NAMES = ("fusedopt", "fused", "foreach", "for-loop")


def _run(
    implementation: Implementation, choice: Choice, start: Tensor, grads: Sequence[Tensor]
) -> Tensor:
    param = Parameter(start.clone())
    optimizer = implementation.make(choice, [param])
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
    return param.detach().cpu().double()


def errors(choice: Choice, dtype: str, steps: int, device: str = "cpu", seed: int = 0) -> list[Row]:
    """Compares each implementation with torch's for-loop in float64.

    All start from the same parameters and see the same gradients, rounded to `dtype` beforehand, so
    that only the arithmetic and the storage between steps differ.

    Returns:
        One row per implementation: the root mean square and the largest error of the parameters,
        both over the root mean square of how far the steps moved them.
    """
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn((steps + 1, ELEMENTS), generator=generator)
    made[0] *= 0.02  # the usual size of a weight
    start, *grads = made.to(DTYPES[dtype])
    exact = _run(
        IMPLEMENTATIONS["for-loop"], choice, start.double(), [grad.double() for grad in grads]
    )
    moved = (exact - start.double()).square().mean().sqrt()
    rows = []
    for name in NAMES:
        row: Row = {"optimizer": choice.name, "dtype": dtype, "device": device, "steps": steps}
        row["implementation"] = name
        try:
            ours = _run(
                IMPLEMENTATIONS[name], choice, start.to(device), [g.to(device) for g in grads]
            )
        except (Absent, RuntimeError) as reason:
            row["status"] = str(reason)
        else:
            error = ours - exact
            row["rms"] = float(error.square().mean().sqrt() / moved)
            row["max"] = float(error.abs().max() / moved)
        rows.append(row)
    return rows


def table_rows(rows: Sequence[Row]) -> list[list[str]]:
    """One line per optimizer and dtype, one column per implementation, the largest error each."""
    head = ["optimizer", "dtype", *("fusedopt" if n == "fusedopt" else f"torch {n}" for n in NAMES)]
    by_case: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        cell = f"{row['rms']:.1e} ({row['max']:.1e})" if "rms" in row else "–"
        by_case.setdefault((row["optimizer"], row["dtype"]), {})[row["implementation"]] = cell
    return [
        head,
        *([*case, *(cells.get(n, "–") for n in NAMES)] for case, cells in by_case.items()),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        "python -m benchmarks.accuracy",
        description="Errors of the parameters against torch's for-loop in float64: root mean "
        "square (and largest), over the root mean square of how far the steps moved them.",
    )
    parser.add_argument("--optimizer", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--steps", type=runs.number(int, 1), default=100, help="(default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    results.add_json(parser)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    with results.recording(parser, "accuracy", arguments, options.json, CASE) as record:
        for name, dtype in itertools.product(options.optimizer, options.dtype):
            choice = OPTIMIZERS[name]
            record.add(errors(choice, dtype, options.steps, options.device, options.seed))
        print(tables.align(table_rows(record.result["rows"])))


if __name__ == "__main__":
    main()
