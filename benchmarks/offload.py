"""What a step costs where FSDP2 keeps its pieces on the CPU: `python -m benchmarks.offload`.

The processes share this machine's cores and form a group over gloo, and each has its piece of every
parameter. Forward and backward pass, which a GPU has, are left out; the gradients are drawn.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.nn import Parameter

import fusedopt
from benchmarks import phase, results, runs, tables
from benchmarks.phase import LIMIT, TORCH
from benchmarks.results import Row
from benchmarks.timing import CpuClock, Step, Times, interleave
from benchmarks.workloads import WORKLOADS, Workload

CASE = ("workload", "ranks")
KEY = (*CASE, "what", "implementation")
Found = dict[tuple[str, str], list[float]]


class RanksClock(CpuClock):
    """Wall-clock time from a common start until the slowest process has finished: for all equal."""

    def measure(self, step: Step, repeats: int) -> Times:
        """Returns seconds per step."""
        dist.barrier()
        seconds = torch.tensor(super().measure(step, repeats).seconds, dtype=torch.float64)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        return Times(float(seconds), float(seconds), float(seconds))


def sharded(workload: Workload) -> list[Parameter]:
    """This process' pieces of the parameters, with gradients."""
    model = phase.Parameters(workload)
    fully_shard(model, offload_policy=CPUOffloadPolicy(pin_memory=False))
    params = list(model.parameters())
    for param, whole in zip(params, workload.parameters(torch.float32, "cpu"), strict=True):
        # Each process draws the whole, so that nothing has to be sent.
        param.grad = distribute_tensor(
            whole.grad, param.device_mesh, param.placements, src_data_rank=None
        )
    return params


def parts(params: list[Parameter]) -> dict[tuple[str, str], Step]:
    """What is timed: by implementation and part. Each has its own state."""
    ours = fusedopt.AdamW(params)

    def step_of_ours(limit: float | None) -> None:
        ours.max_grad_norm = limit
        ours.step()

    def clipped(optimizer: Any) -> None:
        nn.utils.clip_grad_norm_(params, LIMIT)
        optimizer.step()

    found: dict[tuple[str, str], Step] = {
        ("fusedopt", "step"): functools.partial(step_of_ours, None),
        ("fusedopt", "clip + step"): functools.partial(step_of_ours, LIMIT),
    }
    for name, options in TORCH.items():
        optimizer = torch.optim.AdamW(params, **options)
        found[name, "step"] = optimizer.step
        found[name, "clip + step"] = functools.partial(clipped, optimizer)
    return found


def measure_here(workload: Workload, seed: int = 0) -> Found:
    """Measures in this process, one of a group: seconds of the slowest, for each round.

    The rounds are as few as `interleave` makes, whose number doesn't depend on a process' clock.
    """
    steps = parts(sharded(workload))
    names = {f"{name}: {part}": (name, part) for name, part in steps}
    samples = interleave(
        {text: steps[key] for text, key in names.items()}, RanksClock(), seconds=0, seed=seed
    )
    return {key: samples[text].seconds for text, key in names.items()}


def _serve(rank: int, ranks: int, threads: int, workload: Workload, seed: int, folder: str) -> None:
    torch.set_num_threads(threads)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks
    )
    found = measure_here(workload, seed)
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.destroy_process_group()


def measure(workload: Workload, ranks: int, seed: int = 0) -> list[Row]:
    """Measures a workload in new processes, which have the threads of this one together."""
    threads = max(1, torch.get_num_threads() // ranks)
    with tempfile.TemporaryDirectory() as folder:
        given = (ranks, threads, workload, seed, folder)
        multiprocessing.spawn(_serve, given, nprocs=ranks)
        found: Found = torch.load(Path(folder) / "found.pt")
    return rows_of(workload, found, ranks, threads)


def rows_of(workload: Workload, found: Found, ranks: int, threads: int) -> list[Row]:
    """A row per implementation and part; ours with the ratio to the torch path that is fastest."""
    return [{**row, "ranks": ranks} for row in phase.rows_of(workload, found, threads)]


def all_tables(rows: Sequence[Row]) -> list[list[list[str]]]:
    """A table per number of processes: the parts down, the implementations across."""
    found = []
    for ranks in dict.fromkeys(row["ranks"] for row in rows):
        head, *body = phase.table_rows([row for row in rows if row["ranks"] == ranks])
        last = len(head) - 1  # of the floor, which isn't measured
        title = f"AdamW, {ranks} process{'es' * (ranks != 1)}"
        found.append([[title, *head[1:last]], *(line[:last] for line in body)])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser("python -m benchmarks.offload", description=__doc__)
    parser.add_argument(
        "--workload", nargs="+", choices=WORKLOADS, default=["resnet50", "gpt2"],
        help="(resnet50 gpt2)",
    )  # fmt: skip
    parser.add_argument("--ranks", type=runs.number(int, 1), default=2, help="processes (2)")
    parser.add_argument(
        "--runs", type=runs.number(int, 1), default=1, help="to take the median of (1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order (0)")
    results.add_json(parser)
    options = parser.parse_args(arguments)
    with results.recording(parser, "offload", arguments, options.json, CASE) as record:
        if options.runs > 1:
            runs.repeat(record, "offload", arguments, options.runs, KEY)
        else:
            for name in options.workload:
                record.add(measure(WORKLOADS[name], options.ranks, options.seed))
        print("\n\n".join(map(tables.align, all_tables(record.result["rows"]))))


if __name__ == "__main__":
    main()
