"""What a step costs per parameter, and where it goes: `python -m benchmarks.host`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from torch.optim import Optimizer

from benchmarks import instructions, results, runs, tables
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.optimizers import OPTIMIZERS, Choice
from benchmarks.results import Row
from benchmarks.timing import CpuClock, Spread, Step, interleave
from benchmarks.workloads import WORKLOADS, Workload
from fusedopt.optimizer import plan_of

TORCH = ("fused", "foreach", "for-loop")
PARTS = ("python", "check", "fill", "kernel")
CASE = ("optimizer", "workload", "unit")
HEAD = ["optimizer", "workload", "implementation", "total", *PARTS]


def _plan_step(optimizer: Any, found_inf: float | None) -> Step:
    """What `step` calls, without its Python code; a step that is skipped reads and checks only."""
    plan = plan_of(optimizer)
    return lambda: plan.step(optimizer, (None, found_inf), None, None, None)


def _fused_operator(choice: Choice, optimizer: Optimizer) -> Step | None:
    """torch's fused kernel alone, with the arguments that its step calls it with."""
    name = f"_fused_{choice.cls.lower()}_"
    operator = getattr(torch, name, None)
    if operator is None:
        return None
    with mock.patch.object(torch, name, wraps=operator) as spy:
        optimizer.step()
    calls = list(spy.call_args_list)

    def run() -> None:
        for call in calls:
            operator(*call.args, **call.kwargs)

    return run if calls else None


def _steps(choice: Choice, workload: Workload) -> dict[str, Step]:
    """All that is timed. `tiny` has as many tensors, of one element each."""
    params = workload.parameters(torch.float32, "cpu")
    tiny = Workload("tiny", "", ((1,),) * len(workload.shapes)).parameters(torch.float32, "cpu")
    ours = IMPLEMENTATIONS["fusedopt"].make(choice, params)
    small = IMPLEMENTATIONS["fusedopt"].make(choice, tiny)
    found: dict[str, Step] = {
        "fusedopt": ours.step,
        "plan": _plan_step(ours, None),
        "check": _plan_step(ours, 1.0),
        "tiny plan": _plan_step(small, None),
        "tiny check": _plan_step(small, 1.0),
    }
    for name in TORCH:
        if not IMPLEMENTATIONS[name].has(choice):
            continue
        optimizer = IMPLEMENTATIONS[name].make(choice, params)
        optimizer.step()
        found[name] = optimizer.step
        operator = _fused_operator(choice, optimizer) if name == "fused" else None
        if operator is not None:
            found["operator"] = operator
    return found


def time_split(choice: Choice, workload: Workload, seconds: float) -> list[Row]:
    """Times a step and its parts on one thread.

    Nothing inside the extension is instrumented; the parts are differences within a round.
    `python` is what `step` adds to the plan's own step. `check` is a plan's step that is skipped
    (found_inf): it reads and checks everything. `fill` is what a plan's step over as many tensors
    of one element adds to its check: tables and step counts. `kernel` is what the other elements
    add.

    Returns:
        A row per implementation, in seconds per parameter.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        samples = interleave(_steps(choice, workload), CpuClock(), seconds)
    finally:
        torch.set_num_threads(threads)

    def cost(*names: str) -> float:
        """The first, less the second, and so on by turns of sign; median over rounds."""
        rounds = zip(*(samples[name].seconds for name in names), strict=True)
        values = [sum(times[::2]) - sum(times[1::2]) for times in rounds]
        return Spread.of(values).median / len(workload.shapes)

    ours = {
        "total": cost("fusedopt"),
        "python": cost("fusedopt", "plan"),
        "check": cost("check"),
        "fill": cost("tiny plan", "tiny check"),
        "kernel": cost("plan", "check", "tiny check", "tiny plan"),
    }
    rows = [_row(choice, workload, "fusedopt", "seconds", ours)]
    for name in TORCH:
        if name in samples:
            split = {"total": cost(name)}
            if name == "fused" and "operator" in samples:
                split["kernel"], split["python"] = cost("operator"), cost(name, "operator")
            rows.append(_row(choice, workload, name, "seconds", split))
    return rows


def instruction_split(choice: Choice, workload: Workload) -> list[Row]:
    """Counts the instructions of a step and, for fusedopt, of its parts.

    Returns:
        A row per implementation, in instructions per parameter.
    """
    rows = []
    for name in ("fusedopt", *TORCH):
        if not IMPLEMENTATIONS[name].has(choice):
            continue
        counted = instructions.count(name, choice.name, workload.name)
        split = {"total": counted[instructions.TOTAL]}
        if "step" in counted:
            kernel = counted.get("kernel", 0.0)
            fill = counted.get("build", 0.0) + counted.get("count", 0.0)
            split["python"] = split["total"] - counted["step"]
            split["check"] = counted["step"] - fill - kernel
            split["fill"], split["kernel"] = fill, kernel
        per_parameter = {part: value / len(workload.shapes) for part, value in split.items()}
        rows.append(_row(choice, workload, name, "instructions", per_parameter))
    return rows


def _row(choice: Choice, workload: Workload, name: str, unit: str, split: dict[str, float]) -> Row:
    row: Row = {"optimizer": choice.name, "workload": workload.name, "implementation": name}
    return {**row, "tensors": len(workload.shapes), "unit": unit, **split}


def table_rows(rows: Sequence[Row], unit: str) -> list[list[str]]:
    """The table of one unit."""
    text = tables.seconds_text if unit == "seconds" else lambda value: f"{value:,.0f}"
    return [HEAD, *(
        [*(row[key] for key in HEAD[:3]),
         *(text(row[part]) if part in row else "" for part in ("total", *PARTS))]
        for row in rows if row["unit"] == unit
    )]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        "python -m benchmarks.host",
        description="What a float32 step costs per parameter on one thread, and where it goes: "
        "in Python, in reading and checking the optimizer's objects, in filling the kernel's "
        "tables, in the kernel.",
    )
    parser.add_argument(
        "--optimizer", nargs="+", choices=OPTIMIZERS, default=["adamw", "sgd-momentum"]
    )
    parser.add_argument(
        "--workload", nargs="+", choices=WORKLOADS, default=["1000x64", "10000x16", "1"]
    )
    parser.add_argument(
        "--seconds", type=runs.number(float, 0), default=3.0, help="to measure each (default: 3)"
    )
    parser.add_argument(
        "--instructions", action="store_true",
        help="count instructions too: a minute for each line, needs valgrind and a C compiler",
    )  # fmt: skip
    results.add_json(parser)
    options = parser.parse_args(arguments)
    if options.instructions and instructions.why_not():
        parser.error(f"--instructions: {instructions.why_not()}")
    cases = [(OPTIMIZERS[o], WORKLOADS[w]) for o in options.optimizer for w in options.workload]
    with results.recording(parser, "host", arguments, options.json, CASE) as record:
        _measure(cases, options, record)


def _measure(
    cases: Sequence[tuple[Choice, Workload]], options: argparse.Namespace, record: results.Record
) -> None:
    for case in cases:
        record.add(time_split(*case, options.seconds))
    rows = record.result["rows"]
    print("Time per parameter\n" + tables.align(table_rows(rows, "seconds")), flush=True)
    if options.instructions:
        for case in cases:
            record.add(instruction_split(*case))
        table = tables.align(table_rows(record.result["rows"], "instructions"))
        print(f"\nInstructions per parameter\n{table}")
    elif not instructions.why_not():
        print("\n--instructions counts instructions, too.")


if __name__ == "__main__":
    main()
