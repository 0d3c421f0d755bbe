"""What steps cost that hooks take during the backward pass: `python -m benchmarks.hooks`.

One optimizer for each parameter, whose gradient is dropped right after its step: a call's time, and
a training step's time and memory beside the ordinary loop's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

import fusedopt
from benchmarks import memory, results, runs, tables
from benchmarks.phase import TORCH
from benchmarks.results import Row
from benchmarks.timing import CpuClock, Spread, Step, interleave

CASE = ("workload", "threads")
CALL = "call"
ELEMENTS = 64  # of the tensor that a call steps
LOOPS = ("the loop", "hooks")
Make = Callable[[Iterable[Parameter]], Any]


@dataclass(frozen=True)
class Network:
    """A network that is trained, whose parameters take more memory than its activations.

    Attributes:
        title: What it is, in words.
        make: Makes it.
        shape: Of a batch.
    """

    title: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


def _mlp() -> nn.Module:
    return nn.Sequential(*(nn.Sequential(nn.Linear(1024, 1024), nn.ReLU()) for _ in range(8)))


def _transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(384, 6, 1536, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)


NETWORKS = {
    "mlp": Network("MLP, 8 layers of 1024 × 1024", _mlp, (32, 1024)),
    "transformer": Network("transformer, 6 layers of width 384", _transformer, (4, 64, 384)),
}


def makers() -> dict[str, Make]:
    """Makes an AdamW, by implementation."""
    found: dict[str, Make] = {"fusedopt": fusedopt.AdamW}
    for name, options in TORCH.items():
        found[name] = lambda params, options=options: torch.optim.AdamW(params, **options)
    return found


def step_in_hooks(params: Iterable[Parameter], make: Make) -> Callable[[Tensor], None]:
    """Has each parameter stepped as soon as its gradient is there; returns the hook."""
    optimizers = {param: make([param]) for param in params}

    def step(param: Tensor) -> None:
        optimizers[param].step()  # type: ignore[index]
        param.grad = None

    for param in optimizers:
        param.register_post_accumulate_grad_hook(step)
    return step


def _call(make: Make) -> Step:
    param = Parameter(torch.linspace(-1, 1, ELEMENTS))
    grad = torch.ones(ELEMENTS)
    hook = step_in_hooks([param], make)

    def call() -> None:
        param.grad = grad
        hook(param)

    return call


def measure_calls(seconds: float) -> list[Row]:
    """Times the hook alone, without the backward pass that calls it."""
    steps = {name: _call(make) for name, make in makers().items()}
    samples = interleave(steps, CpuClock(), seconds)
    return [
        {
            **_row(CALL, "hooks", name),
            "seconds": vars(Spread.of(found.seconds)),
            "first_seconds": vars(Spread.of(found.first)),
        }
        for name, found in samples.items()
    ]


def training_step(network: Network, make: Make, in_hooks: bool) -> Step:
    """Makes a network and its optimizers; each call is a step of its training."""
    torch.manual_seed(0)
    model = network.make()
    batch = torch.randn(network.shape)
    if in_hooks:
        step_in_hooks(model.parameters(), make)
        return lambda: model(batch).square().mean().backward()
    optimizer = make(model.parameters())

    def step() -> None:
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_training(name: str, seconds: float) -> list[Row]:
    """Trains copies of a network by turns; gradients don't outlive a step, in either loop."""
    steps = {
        (loop, implementation): training_step(NETWORKS[name], make, loop == "hooks")
        for implementation, make in makers().items()
        for loop in LOOPS
    }
    names = {" ".join(key): key for key in steps}
    for step in steps.values():
        step()  # makes state
    peaks = {key: memory.peak_during(step, "cpu") for key, step in steps.items()}
    samples = interleave({n: steps[key] for n, key in names.items()}, CpuClock(), seconds)
    return [
        {
            **_row(name, *key),
            "seconds": vars(Spread.of(samples[n].seconds)),
            "peak_bytes": peaks[key],
        }
        for n, key in names.items()
    ]


def _row(workload: str, loop: str, implementation: str) -> Row:
    threads = torch.get_num_threads()
    return {
        "workload": workload,
        "threads": threads,
        "loop": loop,
        "implementation": implementation,
    }


def table_rows(rows: Sequence[Row]) -> list[list[str]]:
    """What is measured down, the implementations across."""
    names = list(makers())
    cases: dict[tuple[str, str, int], dict[str, Row]] = {}
    for row in rows:
        key = (row["workload"], row["loop"], row["threads"])
        cases.setdefault(key, {})[row["implementation"]] = row
    body = []
    for (workload, loop, threads), case in cases.items():
        lines: dict[str, Callable[[Row], str]] = {}
        if workload == CALL:
            title = f"a hook's call, {ELEMENTS} elements"
            lines[title] = lambda row: tables.seconds_text(row["seconds"]["median"])
            lines[f"{title}, cold"] = lambda row: tables.seconds_text(
                row["first_seconds"]["median"]
            )
        else:
            title = f"{NETWORKS[workload].title}, {loop}"
            lines[f"{title}: time"] = lambda row: tables.seconds_text(row["seconds"]["median"])
            lines[f"{title}: peak memory"] = lambda row: tables.bytes_text(row["peak_bytes"]) or "–"
        for line, text in lines.items():
            body.append([line, str(threads), *(text(case[n]) if n in case else "" for n in names)])
    return [["", "threads", *names], *body]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser("python -m benchmarks.hooks", description=__doc__)
    parser.add_argument(
        "--workload", nargs="+", choices=[CALL, *NETWORKS], default=[CALL, *NETWORKS]
    )
    parser.add_argument(
        "--threads", type=runs.threads, default=torch.get_num_threads(), help="(all)"
    )
    parser.add_argument(
        "--seconds", type=runs.number(float, 0), default=20.0, help="for each workload (20)"
    )
    results.add_json(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with results.recording(parser, "hooks", arguments, options.json, CASE) as record:
        for workload in options.workload:
            measured = (
                measure_calls(options.seconds)
                if workload == CALL
                else measure_training(workload, options.seconds)
            )
            record.add(measured)
        print(tables.align(table_rows(record.result["rows"])))


if __name__ == "__main__":
    main()
