"""Times optimizer steps: `python -m benchmarks.step`."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Sequence

import torch

from benchmarks import results, runs, tables, targeted
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.measure import CASE, DTYPES, KEY, Case, run_case
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.results import Record
from benchmarks.workloads import WORKLOADS, Workload, from_model
from fusedopt.train.parsers import too_many_threads

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
        "--seconds",
        type=runs.number(float, 0),
        default=2.0,
        help="to measure each table (default: 2)",
    )
    parser.add_argument(
        "--runs",
        type=runs.number(int, 1),
        default=1,
        help="fresh processes to take the median of (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of values and order (default: 0)")
    parser.add_argument(
        "--targets",
        action="store_true",
        help="what the CPU's targets compare and --json's file doesn't have yet, with all threads,"
        " in place of optimizers, workloads, dtypes and implementations (--runs 5: half an hour)",
    )
    parser.add_argument("--no-memory", action="store_true", help="don't measure peak memory")
    results.add_json(parser)
    parser.add_argument(
        "--afresh",
        action="store_true",
        help="rename --json's file, to FILE.old, if it is of another build or machine",
    )
    parser.add_argument(
        "--chart", type=runs.png, metavar="FILE", help="draw a chart as PNG (needs matplotlib)"
    )
    return parser


def _select(chosen: Sequence[str], known: dict[str, object]) -> list[str]:
    return list(known) if "all" in chosen else list(dict.fromkeys(chosen))


def _thread_counts(values: Sequence[str], device: str) -> list[int]:
    if device != "cpu":
        return [torch.get_num_threads()]
    wrong = [value for value in values if value != "all" and not value.isdecimal()]
    if wrong:
        raise ValueError(f"--threads: {wrong[0]!r} is neither a number nor all")
    counts = [torch.get_num_threads() if value == "all" else int(value) for value in values]
    if min(counts) < 1:
        raise ValueError("--threads: at least 1")
    if reason := too_many_threads(max(counts)):
        raise ValueError(f"--threads: {max(counts)} {reason}")
    return list(dict.fromkeys(counts))


def _workloads(options: argparse.Namespace) -> list[Workload]:
    if options.model:
        return [from_model(spec) for spec in options.model]
    return [WORKLOADS[name] for name in _select(options.workload, WORKLOADS)]


def measure_all(
    options: argparse.Namespace, threads: list[int], workloads: list[Workload], record: Record
) -> None:
    """Measures every combination that the options ask for; prints and records each at once."""
    implementations = [
        IMPLEMENTATIONS[name] for name in _select(options.implementation, IMPLEMENTATIONS)
    ]
    for name, workload, dtype in itertools.product(
        _select(options.optimizer, OPTIMIZERS), workloads, _select(options.dtype, DTYPES)
    ):
        case = Case(OPTIMIZERS[name], workload, dtype, options.device)
        measured = run_case(
            case, implementations, threads, options.seconds, options.seed, not options.no_memory
        )
        for count in threads:
            table = tables.step_table(row for row in measured if row["threads"] == count)
            print(f"\n{case.title(count)}\n{table}", flush=True)
        record.add(measured)


def _check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends what would fail after a long measurement, before it."""
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    if options.targets and (options.json is None or options.device != "cpu"):
        parser.error("--targets needs --json, and is for the CPU")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = make_parser()
    options = parser.parse_args(arguments)
    _check_options(parser, options)
    try:
        threads = _thread_counts(options.threads, options.device)
        workloads = _workloads(options)
    except ValueError as error:
        parser.error(str(error))
    with results.recording(parser, "step", arguments, options.json, CASE, options.afresh) as record:
        if options.targets:
            targeted.measure(options, arguments)
            record.result = results.load(options.json)
        elif options.runs > 1:
            runs.repeat(record, "step", _without_chart(arguments), options.runs, KEY)
        else:
            measure_all(options, threads, workloads, record)
        print(f"\n{results.provenance(record.result)}")
    if options.chart:
        from benchmarks.chart import draw

        # A file that was extended has more than this run's cases; the chart shows them all.
        draw(results.load(options.json) if options.json else record.result, options.chart)
        print(f"Drew {options.chart}")


def _without_chart(arguments: Sequence[str]) -> list[str]:
    """The chart is drawn of all runs together."""
    kept = list(arguments)
    while "--chart" in kept:
        at = kept.index("--chart")
        del kept[at : at + 2]
    return [argument for argument in kept if not argument.startswith("--chart=")]


if __name__ == "__main__":
    main()
