"""What the whole optimizer phase costs: `python -m benchmarks.phase`.

A training step has more than `step`: gradients are dropped, their norm is clipped, and an average
of the parameters goes along. Each part, and all together, by turns with torch's.
"""

from __future__ import annotations

import argparse
import functools
import gc
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

import fusedopt
from benchmarks import results, runs, tables
from benchmarks.results import Row
from benchmarks.timing import Spread
from benchmarks.workloads import WORKLOADS, Workload

CASE = ("workload", "threads")
PARTS = ("zero_grad", "norm", "clip", "step", "clip + step", "average", "together")
LARGE = 1 << 20  # elements
DROPPING = ("zero_grad", "together")
LIMIT = 1.0  # of the norm; the workloads' gradients are clipped
DECAY = 0.999
# torch's: the default, which is what most have, and its two faster paths.
TORCH: dict[str, dict[str, Any]] = {
    "torch": {},
    "torch, foreach": {"foreach": True},
    "torch, fused": {"fused": True},
}
SMALL = Workload(
    "mlp",
    "MLP 8-64-64-4, 6 tensors",
    ((64, 8), (64,), (64, 64), (64,), (4, 64), (4,)),
)
ALL = {SMALL.name: SMALL, **WORKLOADS}


class Parameters(nn.Module):
    """A module of a workload's parameters; the small one is made of linear layers."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        made = workload.parameters(torch.float32, "cpu")
        if workload is SMALL:
            self.layers = nn.Sequential(
                nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4)
            )
            for param, values in zip(self.parameters(), made, strict=True):
                param.data = values.data
        else:
            self.layers = nn.ParameterList(made)


@dataclass
class Side:
    """One implementation of the phase, with parameters, state and average of its own.

    Attributes:
        model: Whose parameters have gradients.
        optimizer: Of all parameters.
        clipping: The same or another one, whose step clips if `clip` is None.
        average: Of the model.
        clip: The function that clips before `clipping` steps.
    """

    model: nn.Module
    optimizer: Any
    clipping: Any
    average: Any
    clip: Callable[..., Tensor]
    clips_in_step: bool = False

    @functools.cached_property
    def grads(self) -> list[Tensor]:
        """Gradients that stay where they are."""
        return [torch.empty_like(param) for param in self.params]

    @functools.cached_property
    def params(self) -> list[Parameter]:
        """The model's."""
        return list(self.model.parameters())

    def parts(self) -> dict[str, Callable[[], object]]:
        """What is timed, by its name."""
        return {
            "zero_grad": self.optimizer.zero_grad,
            "clip": lambda: self.clip(self.params, LIMIT),
            "step": self.optimizer.step,
            "clip + step": self.clipped_step,
            "average": lambda: self.average.update_parameters(self.model),
            "together": self.together,
        }

    def clipped_step(self) -> None:
        """By the function, or by the step."""
        if not self.clips_in_step:
            self.clip(self.params, LIMIT)
        self.clipping.step()

    def together(self) -> None:
        """As a training loop has it, but for the two passes that make gradients."""
        self.clipped_step()
        self.average.update_parameters(self.model)
        self.clipping.zero_grad()


def make_sides(workload: Workload) -> dict[str, Side]:
    """All implementations."""
    from torch.optim import swa_utils as torchs_averages

    def ours() -> Side:
        model, averages = Parameters(workload), fusedopt.swa_utils
        return Side(
            model,
            fusedopt.AdamW(model.parameters()),
            fusedopt.AdamW(model.parameters(), max_grad_norm=LIMIT),
            averages.AveragedModel(model, multi_avg_fn=averages.get_ema_multi_avg_fn(DECAY)),
            fusedopt.clip_grad_norm_,
            clips_in_step=True,
        )

    def torchs(**options: Any) -> Side:
        model, averages = Parameters(workload), torchs_averages
        optimizer = torch.optim.AdamW(model.parameters(), **options)
        average = averages.AveragedModel(model, multi_avg_fn=averages.get_ema_multi_avg_fn(DECAY))
        return Side(model, optimizer, optimizer, average, nn.utils.clip_grad_norm_)

    return {"fusedopt": ours(), **{name: torchs(**options) for name, options in TORCH.items()}}


def measure(workload: Workload, seconds: float) -> dict[tuple[str, str], list[float]]:
    """Seconds by implementation and part, one entry for each round.

    What drops gradients begins with new ones, as a backward pass makes them. Everything else begins
    with the same ones, which have their values again. That is outside of what is timed; so is what
    the system needs to take back hundreds of megabytes, which is the same for all. A turn of a
    small workload is five times the same, and its sample the median of the last three.
    """
    sides = make_sides(workload)
    first = next(iter(sides.values()))
    gradients = [param.grad.detach() for param in first.params if param.grad is not None]
    if not gradients:
        gradients = [param.grad for param in workload.parameters(torch.float32, "cpu")]  # type: ignore[misc]
    tasks = [
        (name, part, run) for name, side in sides.items() for part, run in side.parts().items()
    ]
    tasks += [("fusedopt", "norm", lambda: fusedopt.get_total_norm(gradients))]
    tasks += [("torch", "norm", lambda: nn.utils.get_total_norm(gradients))]
    tasks += [("floor", part, run) for part, run in floors(workload).items()]
    found: dict[tuple[str, str], list[float]] = {(name, part): [] for name, part, _ in tasks}
    for name, part, run in tasks:  # makes state
        timed(part, run, sides.get(name), gradients)
    repeats = 1 if workload.elements > LARGE else 5
    order = random.Random(0)
    end = time.perf_counter() + seconds
    collecting = gc.isenabled()
    gc.disable()
    try:
        for done in range(2000):
            if done >= 7 and time.perf_counter() > end:
                break
            order.shuffle(tasks)
            for name, part, run in tasks:
                side = sides.get(name)
                taken = [timed(part, run, side, gradients) for _ in range(repeats)]
                found[name, part].append(statistics.median(taken[-(repeats // 2 + 1) :]))
    finally:
        if collecting:
            gc.enable()
    return found


def timed(part: str, run: Callable[[], object], side: Side | None, grads: list[Tensor]) -> float:
    """Seconds that a part takes which begins with these gradients."""
    if side is not None and part in DROPPING:
        for param, grad in zip(side.params, grads, strict=True):
            param.grad = grad.clone()
    elif side is not None:
        for param, grad in zip(side.params, side.grads, strict=True):
            param.grad = grad
        torch._foreach_copy_(side.grads, grads)
    large = side is not None and sum(grad.numel() for grad in grads) > LARGE
    kept = [param.grad for param in side.params] if large and side is not None else []
    start = time.perf_counter_ns()
    run()
    taken = (time.perf_counter_ns() - start) * 1e-9
    del kept
    return taken


def floors(workload: Workload) -> dict[str, Callable[[], object]]:
    """Passes over as many bytes that compute next to nothing."""
    from fusedopt import _C

    if workload.elements <= LARGE:
        return {}
    words = [torch.full((workload.elements,), 3 + k, dtype=torch.int32) for k in range(5)]

    def norm() -> None:
        _C.stream_read(words[0])

    def step() -> None:
        _C.stream(words[0], words[1:4])

    def average() -> None:
        _C.stream(words[1], words[4:])

    def together() -> None:
        norm()
        step()
        average()

    def clipped_step() -> None:
        norm()
        step()

    return {
        "norm": norm,
        "step": step,
        "clip + step": clipped_step,
        "average": average,
        "together": together,
    }


def rows_of(
    workload: Workload, found: dict[tuple[str, str], list[float]], threads: int
) -> list[Row]:
    """A row per implementation and part; ours with the ratio to the torch path that is fastest."""
    rows = []
    for (name, part), seconds in found.items():
        row: Row = {
            "workload": workload.name,
            "threads": threads,
            "what": part,
            "implementation": name,
            "seconds": vars(Spread.of(seconds)),
        }
        if name == "fusedopt":
            _compare(row, part, seconds, found)
        rows.append(row)
    return rows


def _compare(
    row: Row, part: str, seconds: list[float], found: dict[tuple[str, str], list[float]]
) -> None:
    torchs = {name: found[name, part] for name in TORCH if (name, part) in found}
    best = min(torchs, key=lambda name: Spread.of(torchs[name]).median)
    row["torch_best"] = best
    row["ratio"] = vars(Spread.of_ratios(torchs[best], seconds))
    row["ratio_default"] = vars(Spread.of_ratios(torchs["torch"], seconds))
    if ("floor", part) in found:
        share = Spread.of_ratios(found["floor", part], seconds).median
        row["floor_percent"] = 100 * share


def table_rows(rows: Sequence[Row]) -> list[list[str]]:
    """The parts down, the implementations across."""
    names = ["fusedopt", *TORCH]
    head = ["", "threads", *names, "torch's best / ours", "torch's default / ours", "% of floor"]
    cases: dict[tuple[str, int, str], dict[str, Row]] = {}
    for row in rows:
        key = (row["workload"], row["threads"], row["what"])
        cases.setdefault(key, {})[row["implementation"]] = row
    body = []
    order = sorted(
        cases, key=lambda case: (case[1], list(ALL).index(case[0]), PARTS.index(case[2]))
    )
    for workload, threads, part in order:
        case = cases[workload, threads, part]
        mine = case["fusedopt"]
        times = [
            tables.seconds_text(case[name]["seconds"]["median"]) if name in case else ""
            for name in names
        ]
        percent = f"{mine['floor_percent']:.0f} %" if "floor_percent" in mine else ""
        ratios = [f"{tables.digits(mine[key]['median'])}×" for key in ("ratio", "ratio_default")]
        body.append([f"{workload}, {part}", str(threads), *times, *ratios, percent])
    return [head, *body]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser("python -m benchmarks.phase", description=__doc__)
    parser.add_argument(
        "--workload",
        nargs="+",
        choices=ALL,
        default=["mlp", "1000x64", "resnet50", "gpt2"],
        help="(mlp 1000x64 resnet50 gpt2)",
    )
    parser.add_argument(
        "--threads", nargs="+", type=runs.threads, default=[torch.get_num_threads()]
    )
    parser.add_argument(
        "--seconds", type=runs.number(float, 0), default=10.0, help="for each workload (10)"
    )
    results.add_json(parser)
    options = parser.parse_args(arguments)
    with results.recording(parser, "phase", arguments, options.json, CASE) as record:
        for threads in options.threads:
            torch.set_num_threads(threads)
            for name in options.workload:
                found = measure(ALL[name], options.seconds)
                record.add(rows_of(ALL[name], found, threads))
        print(tables.align(table_rows(record.result["rows"])))


if __name__ == "__main__":
    main()
