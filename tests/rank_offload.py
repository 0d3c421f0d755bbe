"""FSDP2 with CPUOffloadPolicy on several ranks: the recipe of docs/switching.md.

Without a GPU the mesh is one of CPUs, and "offloaded" is where the pieces are anyway; torch takes
the same way through its code, but for pinned memory.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pages
import torch
import torch.distributed as dist
from cases import CLASS_CASES
from helpers import all_params, assert_identical, kernels, random
from rank_checks import (
    MAIN,
    STEPS,
    assert_close,
    fsdp,
    full,
    learned,
    make_model,
    own_batch,
    train,
    whole_batch,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 0.01  # less than the gradients' norm


def recipe() -> dict[str, Any]:
    """The functions that the page defines."""
    return pages.names("CPUOffloadPolicy")


def offloaded_equals_fsdp_and_torchs() -> None:
    """torch.optim's in one process: its Rprop can't step DTensors, and the others take seconds."""
    offloaded = recipe()["offloaded"]
    for each in CLASS_CASES:
        model = offloaded(make_model())
        ours = train(model, each.make(model.parameters()), own_batch)
        assert kernels(ours) == {each.name.lower()}
        assert_identical(learned(ours), learned(fsdp(each)))
        model = make_model()
        theirs = each.make(model.parameters(), module=torch.optim)
        assert_close(learned(ours), learned(train(model, theirs, whole_batch)))


def the_recipe_trains() -> None:
    """As torch.optim's class does, with torch's function clipping before each step."""
    names = recipe()
    model = make_model()
    seeds = range(STEPS)
    ours = names["train"](model, seeds, loss_of)
    assert kernels(ours) == {"adamw"}
    model = names["offloaded"](make_model())
    theirs = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for seed in seeds:
        loss_of(model, seed).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        theirs.step()
        theirs.zero_grad()
    assert full(norm) > 1.0
    torch.testing.assert_close(full(ours.grad_norm), full(norm))
    assert_close(learned(ours), learned(theirs))


def loss_of(model: nn.Module, seed: int) -> Tensor:
    return 100 * (model(own_batch(seed)) - 1).square().mean()


def checkpoints_move_both_ways(folder: Path) -> None:
    names = recipe()

    def begun(module: ModuleType) -> tuple[nn.Module, Optimizer]:
        model = names["offloaded"](make_model())
        return model, MAIN.make(model.parameters(), module=module)

    model, optimizer = begun(torch.optim)
    expected = learned(train(model, optimizer, own_batch, range(2 * STEPS)))
    for first, second in ((torch.optim, fusedopt), (fusedopt, torch.optim)):
        path = folder / first.__name__
        model, optimizer = begun(first)
        train(model, optimizer, own_batch)
        saved = learned(optimizer)
        names["save"](model, optimizer, path)
        model, optimizer = begun(second)
        names["load"](model, optimizer, path)
        assert_identical(learned(optimizer), saved)
        train(model, optimizer, own_batch, range(STEPS, 2 * STEPS))
        assert_close(learned(optimizer), expected)


def pieces_beside_the_meshs_gpus() -> None:
    """What FSDP2 makes where there are GPUs: a mesh of them, and pieces in the CPU's memory."""
    assert dist.group.WORLD is not None
    mesh = DeviceMesh.from_group(dist.group.WORLD, "cuda")

    def piece(seed: int) -> DTensor:
        whole = random((7, 3), seed)
        meta = TensorMeta(whole.shape, whole.stride(), whole.dtype)
        pieces = whole.chunk(mesh.size())
        local = pieces[mesh.get_local_rank()].clone()
        return DTensor(local, DTensorSpec(mesh, (Shard(0),), tensor_meta=meta), requires_grad=False)

    for each in CLASS_CASES:
        ours = each.make([Parameter(piece(0)), Parameter(piece(1))], max_grad_norm=LIMIT)
        alone = each.make([Parameter(random((7, 3), seed)) for seed in range(2)])
        for step in range(STEPS):
            grads = range(2 * step + 2, 2 * step + 4)
            for p, q, seed in zip(*map(all_params, (ours, alone)), grads, strict=True):
                p.grad, q.grad = piece(seed), random((7, 3), seed)
            norm = fusedopt.clip_grad_norm_(all_params(alone), LIMIT)
            ours.step()
            alone.step()
            assert ours.grad_norm.device.type == "cpu"
            torch.testing.assert_close(full(ours.grad_norm), norm)
        assert kernels(ours) == {each.name.lower()}
        assert_close(learned(ours), learned(alone))
        norm = fusedopt.clip_grad_norm_(all_params(ours), LIMIT)
        assert isinstance(norm, DTensor) and norm.to_local().device.type == "cpu"


def the_benchmark_measures_its_pieces() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks import offload, timing
    from benchmarks.workloads import Workload

    timing.SAMPLE_SECONDS = 1e-5
    tiny = Workload("tiny", "two tensors", ((3, 4), (5,)))
    params = offload.sharded(tiny)
    whole = tiny.parameters(torch.float32, "cpu")
    for param, other in zip(params, whole, strict=True):
        assert_identical([full(param.detach()), full(param.grad)], [other.detach(), other.grad])
    for (name, _), step in offload.parts(params).items():
        before = learned_values(params)
        step()
        assert learned_values(params) != before, name
    found = offload.measure_here(tiny)
    assert {part for _, part in found} == {"step", "clip + step"}
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, found)
    assert every[0] == every[1]  # the slowest process' time


def learned_values(params: list[Parameter]) -> list[Any]:
    return [full(param.detach()).tolist() for param in params]


ALL = (
    offloaded_equals_fsdp_and_torchs,
    the_recipe_trains,
    pieces_beside_the_meshs_gpus,
    the_benchmark_measures_its_pieces,
)
