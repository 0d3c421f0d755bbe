"""Times steps whose operands lie differently in memory: `python -m benchmarks.strides`."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from benchmarks import results, runs, tables
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.measure import DTYPES
from benchmarks.optimizers import OPTIMIZERS, Choice
from benchmarks.results import Row
from benchmarks.timing import Spread, Step, clock_for, interleave

CASE = ("optimizer", "layout", "dtype", "device", "threads")
KEY = (*CASE, "implementation")
# Not torch's fused path, which ignores strides and updates the wrong elements.
NAMES = ("fusedopt", "foreach", "for-loop")
SIDE = 1024
Make = Callable[..., Tensor]  # takes a shape, returns values


# A parameter and its gradient, of a square of elements or of as many in an image's shape.
LAYOUTS: dict[str, Callable[[Make], tuple[Tensor, Tensor]]] = {
    "contiguous": lambda make: (make(SIDE, SIDE), make(SIDE, SIDE)),
    "gradient expanded from a number": lambda make: (make(SIDE, SIDE), make().expand(SIDE, SIDE)),
    "gradient expanded from a column": lambda make: (
        make(SIDE, SIDE),
        make(SIDE, 1).expand(SIDE, SIDE),
    ),
    "gradient expanded from a row": lambda make: (make(SIDE, SIDE), make(SIDE).expand(SIDE, SIDE)),
    "parameter with half of each row": lambda make: (
        make(SIDE, 2 * SIDE)[:, :SIDE],
        make(SIDE, SIDE),
    ),
    "parameter with every second column": lambda make: (
        make(SIDE, 2 * SIDE)[:, ::2],
        make(SIDE, SIDE),
    ),
    "both with every second element": lambda make: (
        make(2 * SIDE * SIDE)[::2],
        make(2 * SIDE * SIDE)[::2],
    ),
    "gradient transposed": lambda make: (make(SIDE, SIDE), make(SIDE, SIDE).t()),
    "parameter transposed": lambda make: (make(SIDE, SIDE).t(), make(SIDE, SIDE)),
    "parameter channels_last": lambda make: (_nhwc(make(*_image())), make(*_image())),
    "gradient channels_last": lambda make: (make(*_image()), _nhwc(make(*_image()))),
    "parameter with two of three columns": lambda make: (
        make(SIDE * SIDE // 2, 3)[:, :2],
        make(SIDE * SIDE // 2, 2),
    ),
    "parameter with four of five channels": lambda make: (
        make(SIDE // 2, SIDE // 2, 5)[:, :, :4],
        make(SIDE // 2, SIDE // 2, 4),
    ),
    "parameter with two of three channels, gradient transposed": lambda make: (
        make(SIDE // 2, SIDE, 3)[:, :, ::2],
        make(2, SIDE, SIDE // 2).permute(2, 1, 0),
    ),
    "gradient with dimensions of two shuffled": lambda make: (
        make(*_twos()),
        make(*_twos()).permute(_shuffled(len(_twos()))),
    ),
}


def _nhwc(values: Tensor) -> Tensor:
    return values.contiguous(memory_format=torch.channels_last)


def _twos() -> tuple[int, ...]:
    return (2,) * int(math.log2(SIDE * SIDE))


def _shuffled(ndim: int) -> list[int]:
    return [7 * dim % ndim for dim in range(ndim)]


def _image() -> tuple[int, ...]:
    return (SIDE // 4, SIDE // 16, 8, 8)


def measure(choice: Choice, layout: str, dtype: str, seconds: float, seed: int = 0) -> list[Row]:
    """Steps one pair of tensors with each implementation, by turns."""
    generator = torch.Generator().manual_seed(seed)

    def make(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(DTYPES[dtype])

    values, grad = LAYOUTS[layout](make)
    param = Parameter(values)
    param.grad = grad
    steps: dict[str, Step] = {
        name: IMPLEMENTATIONS[name].make(choice, [param]).step for name in NAMES
    }
    samples = interleave(steps, clock_for("cpu"), seconds, seed)
    medians = {name: Spread.of(samples[name].seconds).median for name in NAMES}
    best = min(NAMES[1:], key=medians.__getitem__)
    rows = []
    for name in NAMES:
        own = samples[name].seconds
        place = (choice.name, layout, dtype, "cpu", torch.get_num_threads(), name)
        row: Row = dict(zip(KEY, place, strict=True))
        row["seconds"] = dataclasses.asdict(Spread.of(own))
        row["torch_best"] = best
        row["ratio"] = dataclasses.asdict(Spread.of_ratios(samples[best].seconds, own))
        rows.append(row)
    return rows


def table_rows(rows: Sequence[Row], dtype: str, threads: int) -> list[list[str]]:
    """A table: layouts down, optimizers across, how long torch's fastest path takes over ours."""
    found = [
        row
        for row in rows
        if (row["implementation"], row["dtype"], row["threads"]) == ("fusedopt", dtype, threads)
    ]
    names = list(dict.fromkeys(row["optimizer"] for row in found))
    lines: dict[str, dict[str, str]] = {}
    for row in found:
        lines.setdefault(row["layout"], {})[row["optimizer"]] = f"{row['ratio']['median']:.2f}×"
    title = f"{dtype}, {threads} thread{'s' * (threads != 1)}"
    return [
        [title, *names],
        *([layout, *(cells.get(name, "") for name in names)] for layout, cells in lines.items()),
    ]


def all_tables(rows: Sequence[Row]) -> list[list[list[str]]]:
    """One for each dtype and number of threads."""
    kinds = dict.fromkeys((row["dtype"], row["threads"]) for row in rows)
    return [table_rows(rows, *kind) for kind in kinds]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        "python -m benchmarks.strides",
        description="Times steps of 1 M elements that lie otherwise than their gradient.",
    )
    parser.add_argument("--optimizer", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument(
        "--seconds", type=runs.number(float, 0), default=1.0, help="for each (default: 1)"
    )
    parser.add_argument("--runs", type=runs.number(int, 1), default=1,
                        help="fresh processes to take the median of (default: 1)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of values and order (default: 0)")
    results.add_json(parser)
    options = parser.parse_args(arguments)
    with results.recording(parser, "strides", arguments, options.json, CASE) as record:
        if options.runs > 1:
            runs.repeat(record, "strides", arguments, options.runs, KEY)
        else:
            for dtype, layout, name in itertools.product(
                options.dtype, options.layout, options.optimizer
            ):
                choice = OPTIMIZERS[name]
                record.add(measure(choice, layout, dtype, options.seconds, options.seed))
        print("\n\n".join(map(tables.align, all_tables(record.result["rows"]))))


if __name__ == "__main__":
    main()
