"""Measuring one case: every implementation of one optimizer over one workload, in one process."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

import fusedopt
from benchmarks import floor, memory, syncs
from benchmarks.implementations import IMPLEMENTATIONS, Absent, Implementation, check
from benchmarks.optimizers import Choice
from benchmarks.results import Row
from benchmarks.timing import Samples, Spread, Step, clock_for, interleave
from benchmarks.workloads import Workload

FLOOR = "floor"
ABSENT = "absent:"
CONTIGUOUS = "fusedopt, contiguous"  # beside a workload that is not
CASE = ("optimizer", "workload", "dtype", "device", "threads")
KEY = (*CASE, "implementation")
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
}

_check = functools.cache(check)


@dataclasses.dataclass(frozen=True)
class Case:
    """What is stepped, and on what."""

    choice: Choice
    workload: Workload
    dtype: str
    device: str

    @property
    def element_size(self) -> int:
        """Bytes per element."""
        return DTYPES[self.dtype].itemsize

    @property
    def bytes_moved(self) -> int:
        """What one step must read and write."""
        return self.choice.bytes_moved(self.workload.elements, self.element_size)

    def title(self, threads: int) -> str:
        """A heading."""
        where = f"{threads} thread{'s' * (threads != 1)}" if self.device == "cpu" else self.device
        return f"{self.choice.name} · {self.workload.title} · {self.dtype} · {where}"


def run_case(
    case: Case,
    implementations: Sequence[Implementation],
    threads: Sequence[int],
    seconds: float = 2.0,
    seed: int = 0,
    with_memory: bool = True,
) -> list[Row]:
    """Measures a case with each number of threads.

    Parameters and gradients are shared by all implementations, as only one runs at a time; each
    has its own state.

    Args:
        case: What to measure.
        implementations: What to compare. Those that can't run it get a row that says why.
        threads: For each number of threads all rows are measured.
        seconds: Of measuring, for each number of threads.
        seed: Of values and order.
        with_memory: Whether to measure each implementation's peak memory.
    """
    status = {each.name: _status(each, case) for each in implementations}
    able = [each for each in implementations if not status[each.name].startswith(ABSENT)]
    missing = _too_large(case, len(able))
    if missing:
        return [_row(case, count, FLOOR, status=missing) for count in threads]
    steps = _make_steps(case, able, status, seed)
    peaks: dict[str, int | None] = {}
    for name, step in steps.items():
        step()  # creates the state
        peaks[name] = memory.peak_during(step, case.device) if with_memory else None
    waits = _syncs(case, able) if case.device == "cuda" else {}
    steps[FLOOR] = floor.make_floor(
        case.choice.states, case.workload.elements * case.element_size, case.device
    )
    rows = []
    threads_before = torch.get_num_threads()
    try:
        for count in threads:
            torch.set_num_threads(count)
            samples = interleave(steps, clock_for(case.device), seconds, seed)
            measured = _rows(case, count, samples, status, peaks)
            if case.device == "cuda":
                _add_cuda(measured, samples, status, waits)
            rows += measured
    finally:
        torch.set_num_threads(threads_before)
    return rows


def _too_large(case: Case, implementations: int) -> str:
    """Says that a case won't fit into memory, or nothing."""
    operand = case.workload.elements * case.element_size
    states = case.choice.states * (implementations + 1)
    needed = operand * (3 + states + 3)  # parameter twice, gradient; state; foreach's temporaries
    if case.device == "cuda":
        needed += case.bytes_moved  # the copy's source and target
    free = memory.available() if case.device == "cpu" else torch.cuda.mem_get_info()[0]
    if free is None or needed < free:
        return ""
    return f"skipped: needs {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} are free"


def _status(implementation: Implementation, case: Case) -> str:
    """Says what is wrong with an implementation, or why it can't run a case, or nothing."""
    try:
        return _check(implementation, case.choice, DTYPES[case.dtype], case.device)
    except Absent as reason:
        return f"{ABSENT} {reason}"


def _make_steps(
    case: Case, implementations: Sequence[Implementation], status: dict[str, str], seed: int
) -> dict[str, Step]:
    """Returns each implementation's step function; adds to `status` who can't run after all."""
    steps: dict[str, Step] = {}
    dtype = DTYPES[case.dtype]
    params = case.workload.parameters(dtype, case.device, seed)
    for implementation in implementations:
        try:
            optimizer = implementation.make(case.choice, params)
        except Absent as reason:
            status[implementation.name] = f"{ABSENT} {reason}"
            continue
        steps[implementation.name] = optimizer.step
        if implementation.name == "fusedopt" and case.device == "cuda":
            status["fusedopt"] = status["fusedopt"] or _taken_by_torch(optimizer)
    if case.workload.channels_last and "fusedopt" in steps:
        plain = dataclasses.replace(case.workload, channels_last=False)
        params = plain.parameters(dtype, case.device, seed)
        steps[CONTIGUOUS] = IMPLEMENTATIONS["fusedopt"].make(case.choice, params).step
        status[CONTIGUOUS] = ""
    return steps


def _taken_by_torch(optimizer: Optimizer) -> str:
    """Says that torch's own step runs in place of our kernels, or nothing."""
    with contextlib.redirect_stdout(io.StringIO()):
        rows = fusedopt.explain(optimizer).rows
    reasons = [row.reason for row in rows if row.kernel == "torch"]
    return f"torch's own step: {reasons[0]}" if reasons else ""


def _syncs(case: Case, implementations: Sequence[Implementation]) -> dict[str, float | None]:
    """How often each waits for the device in a step with GradScaler."""
    dtype = DTYPES[case.dtype]
    return {each.name: syncs.per_step(each, case.choice, dtype) for each in implementations}


def _torch_paths(samples: Mapping[str, Samples], status: Mapping[str, str]) -> list[str]:
    return [
        name
        for name in samples
        if name in IMPLEMENTATIONS and IMPLEMENTATIONS[name].is_torch and not status[name]
    ]


def _add_cuda(
    rows: Sequence[Row],
    samples: Mapping[str, Samples],
    status: Mapping[str, str],
    waits: Mapping[str, float | None],
) -> None:
    """Adds what only a device has: the host's time, until all is done, late launches, waits.

    Of each time the ratio is to the torch path that is fastest by that measure.
    """
    measures: dict[str, Callable[[Samples], list[float]]] = {
        "host": lambda sample: sample.host,
        "done": lambda sample: sample.done,
    }
    paths = _torch_paths(samples, status)
    for row in rows:
        if "seconds" not in row:
            continue
        own = samples[row["implementation"]]
        for measure, values in measures.items():
            row[f"{measure}_seconds"] = dataclasses.asdict(Spread.of(values(own)))
            medians = {name: Spread.of(values(samples[name])).median for name in paths}
            if medians and row["implementation"] != FLOOR:
                best = min(medians, key=medians.__getitem__)
                ratio = Spread.of_ratios(values(samples[best]), values(own))
                row[f"{measure}_best"] = best
                row[f"{measure}_ratio"] = dataclasses.asdict(ratio)
        if "first_seconds" in row:  # on CUDA it is the host that finds its caches cold
            row["first_host_seconds"] = row.pop("first_seconds")
        row["late_percent"] = 100 * statistics.fmean(own.late)
        row["scaler_syncs"] = waits.get(row["implementation"])


def _rows(
    case: Case,
    threads: int,
    samples: dict[str, Samples],
    status: dict[str, str],
    peaks: dict[str, int | None],
) -> list[Row]:
    torch_paths = _torch_paths(samples, status)
    medians = {name: Spread.of(samples[name].seconds).median for name in samples}
    best = min(torch_paths, key=lambda name: medians[name], default=None)
    rows = []
    for name in [FLOOR, *status]:
        row = _row(case, threads, name, status=status.get(name, ""))
        if name in samples:
            own = samples[name].seconds
            row["seconds"] = dataclasses.asdict(Spread.of(own))
            if samples[name].first:
                row["first_seconds"] = dataclasses.asdict(Spread.of(samples[name].first))
            row["gb_per_s"] = case.bytes_moved / medians[name] * 1e-9
            row["floor_percent"] = 100 * Spread.of_ratios(samples[FLOOR].seconds, own).median
            row["peak_bytes"] = peaks.get(name)
            row["rounds"] = len(own)
            if best is not None and name != FLOOR:
                ratio = Spread.of_ratios(samples[best].seconds, own)
                row["torch_best"], row["ratio"] = best, dataclasses.asdict(ratio)
            if name == "fusedopt" and CONTIGUOUS in samples:
                over = Spread.of_ratios(own, samples[CONTIGUOUS].seconds)
                row["over_contiguous"] = dataclasses.asdict(over)
        rows.append(row)
    return rows


def _row(case: Case, threads: int, name: str, **fields: Any) -> Row:
    values = (case.choice.name, case.workload.name, case.dtype, case.device, threads, name)
    return {
        **dict(zip(KEY, values, strict=True)),
        "elements": case.workload.elements,
        "tensors": len(case.workload.shapes),
        "bytes": case.bytes_moved,
        **fields,
    }
