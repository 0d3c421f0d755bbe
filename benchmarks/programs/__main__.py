"""Runs the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from benchmarks import results, runs, tables
from benchmarks.programs.measure import CASE, PROGRAMS, absent, measure
from benchmarks.programs.table import table_rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        "python -m benchmarks.programs",
        description="Whole programs with fusedopt, with torch's default and with its fastest path: "
        "seconds, the optimizer phase's share of them, and what was learned.",
    )
    parser.add_argument("--program", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument(
        "--repeats", type=runs.number(int, 1), default=3, help="seeds of each (default: 3)"
    )
    parser.add_argument("--threads", type=runs.threads, help="(default: as many as torch takes)")
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of each program, once: does it run?"
    )
    parser.add_argument(
        "--chart", type=runs.png, metavar="PNG", help="draw when it pays, of all the file has"
    )
    results.add_json(parser)
    options = parser.parse_args(arguments)
    repeats = 1 if options.quick else options.repeats
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with results.recording(parser, "programs", arguments, options.json, CASE) as record:
        for name in options.program:
            print(f"{name}: {absent(PROGRAMS[name]) or PROGRAMS[name].title}", flush=True)
            record.add(measure(PROGRAMS[name], repeats, options.quick))
        print(tables.align(table_rows(record.result["rows"])))
    if options.chart:
        from benchmarks.programs.chart import draw

        draw(results.load(options.json) if options.json else record.result, options.chart)
        print(f"Drew {options.chart}")


if __name__ == "__main__":
    main()
