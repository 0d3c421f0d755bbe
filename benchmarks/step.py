"""Times optimizer steps: `python -m benchmarks.step`."""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from benchmarks import results, tables
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.measure import DTYPES, KEY, Case, run_case
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.results import Row
from benchmarks.workloads import WORKLOADS, Workload, from_model

DESCRIPTION = """\
Times optimizer.step() of fusedopt, torch's fused, foreach and for-loop paths, and of other
libraries where they are installed, beside the time that memory alone needs (floor).
Without arguments: AdamW, four workloads, one thread and all, in about a minute."""


def _choices(
    parser: argparse.ArgumentParser, name: str, known: Iterable[str], default: str
) -> None:
    names = list(known)
    parser.add_argument(
        f"--{name}",
        nargs="+",
        choices=[*names, "all"],
        default=default.split(),
        metavar=name.upper(),
        help=f"{', '.join(names)}, or all (default: {default})",
    )


def make_parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.step",
        allow_abbrev=False,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _choices(parser, "optimizer", OPTIMIZERS, "adamw")
    _choices(parser, "workload", WORKLOADS, "16m resnet50 1000x64 1")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="PACKAGE.MODULE:FACTORY",
        help="a network of your own: a function that returns a module; takes the workloads' place",
    )
    _choices(parser, "dtype", DTYPES, "float32")
    _choices(parser, "implementation", IMPLEMENTATIONS, "all")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: cpu)")
    parser.add_argument(
        "--threads", nargs="+", default=["1", "all"], help="numbers, or all (default: 1 all)"
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="to measure each table (default: 2)"
    )
    parser.add_argument(
        "--runs", type=int, default=1, help="fresh processes to take the median of (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of values and order (default: 0)")
    parser.add_argument("--no-memory", action="store_true", help="don't measure peak memory")
    parser.add_argument("--json", type=Path, help="write a result file")
    parser.add_argument("--chart", type=Path, help="draw a chart as PNG (needs matplotlib)")
    return parser


def _select(chosen: Sequence[str], known: dict[str, object]) -> list[str]:
    return list(known) if "all" in chosen else list(dict.fromkeys(chosen))


def _thread_counts(values: Sequence[str], device: str) -> list[int]:
    if device != "cpu":
        return [torch.get_num_threads()]
    counts = [torch.get_num_threads() if value == "all" else int(value) for value in values]
    if min(counts) < 1:
        raise ValueError("--threads: at least 1")
    return list(dict.fromkeys(counts))


def _workloads(options: argparse.Namespace) -> list[Workload]:
    if options.model:
        return [from_model(spec) for spec in options.model]
    return [WORKLOADS[name] for name in _select(options.workload, WORKLOADS)]


def measure_all(options: argparse.Namespace) -> list[Row]:
    """Measures every combination that the options ask for, and prints each table at once."""
    threads = _thread_counts(options.threads, options.device)
    implementations = [
        IMPLEMENTATIONS[name] for name in _select(options.implementation, IMPLEMENTATIONS)
    ]
    rows = []
    for name, workload, dtype in itertools.product(
        _select(options.optimizer, OPTIMIZERS), _workloads(options), _select(options.dtype, DTYPES)
    ):
        case = Case(OPTIMIZERS[name], workload, dtype, options.device)
        measured = run_case(
            case, implementations, threads, options.seconds, options.seed, not options.no_memory
        )
        rows += measured
        for count in threads:
            table = tables.step_table(row for row in measured if row["threads"] == count)
            print(f"\n{case.title(count)}\n{table}", flush=True)
    return rows


def _run_again(arguments: Sequence[str], runs: int) -> list[list[Row]]:
    """Runs the same command in fresh processes, and returns each one's rows."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for run in range(runs):
            path = Path(folder) / f"{run}.json"
            print(f"\nRun {run + 1} of {runs}", flush=True)
            # Later arguments win. A chart is drawn of all runs together.
            once = ["--runs", "1", "--json", str(path), "--seed", str(run)]
            command = [sys.executable, "-m", "benchmarks.step", *arguments, *once]
            subprocess.run(command, check=True)
            found.append(results.load(path)["rows"])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    result = results.new_result("benchmarks.step", arguments, [])  # the load before the run
    try:
        if options.runs > 1:
            plain = _without_chart(arguments)
            result["rows"] = results.merge(_run_again(plain, options.runs), KEY)
        else:
            result["rows"] = measure_all(options)
    except ValueError as error:
        parser.error(str(error))
    print(f"\n{results.provenance(result)}")
    if options.json:
        results.save(result, options.json)
        print(f"Wrote {options.json}")
    if options.chart:
        from benchmarks.chart import draw

        draw(result, options.chart)
        print(f"Drew {options.chart}")


def _without_chart(arguments: Sequence[str]) -> list[str]:
    kept = list(arguments)
    while "--chart" in kept:
        at = kept.index("--chart")
        del kept[at : at + 2]
    return [argument for argument in kept if not argument.startswith("--chart=")]


if __name__ == "__main__":
    main()
