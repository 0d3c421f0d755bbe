"""Averages of DTensors on several ranks, for test_distributed.py: the same code on all at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from averages import FUNCTIONS, LERPS
from helpers import assert_identical, random
from rank_checks import full, make_model, sharded
from rank_norms import placed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn import Parameter
from torch.optim import swa_utils as torchs

from fusedopt import _C
from fusedopt import swa_utils as ours

UPDATES = 3
SHAPES = {(7, 6): Shard(0), (5, 3): Shard(1), (4,): Replicate(), (1, 9): Shard(0)}


def refill(model: nn.Module, seed: int) -> None:
    """New values: of a DTensor, its part of the same whole on all ranks."""
    with torch.no_grad():
        for i, t in enumerate([*model.parameters(), *model.buffers()]):
            new = random(t.shape, 1000 * seed + i).to(t.dtype)
            t.copy_(placed(new, t.device_mesh, t.placements) if isinstance(t, DTensor) else new)


def wholes(average: nn.Module) -> list[Tensor]:
    return [full(t.detach()).clone() for t in [*average.parameters(), *average.buffers()]]


def versions(average: nn.Module) -> list[int]:
    found = [*average.parameters(), *average.buffers()]
    locals_ = [t.to_local() for t in found if isinstance(t, DTensor)]
    return [t._version for t in [*found, *locals_]]


def updated(average: Any, model: nn.Module, *, fast: bool | None = None) -> Any:
    for t in range(UPDATES):
        refill(model, t + 1)
        if fast is None:
            average.update_parameters(model)
        else:
            assert _C.update_parameters(average, model) is fast
    return average


class Pieces(nn.Module):
    """Parameters placed in these ways, and plain ones."""

    def __init__(self, dtype: torch.dtype = torch.float32, whole: bool = False) -> None:
        super().__init__()
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for i, (shape, placement) in enumerate(SHAPES.items()):
            value = random(shape, i).to(dtype)
            cut = value if whole else placed(value, mesh, (placement,))
            self.register_parameter(f"p{i}", Parameter(cut))
        self.register_buffer("plain", random((3,), 9).to(dtype))


def averages_of_dtensors() -> None:
    """Those of the whole, bit for bit, in one call; torch's within an ulp."""
    for function, make in FUNCTIONS.items():
        average = updated(ours.AveragedModel(Pieces(), **make(ours)), Pieces(), fast=True)
        theirs = updated(torchs.AveragedModel(Pieces(), **make(torchs)), Pieces())
        same = ours.AveragedModel(Pieces(whole=True), **make(ours))
        assert_identical(wholes(average), wholes(updated(same, Pieces(whole=True), fast=True)))
        if function not in LERPS:  # torch's operators on lists of DTensors count none
            assert versions(average) == versions(theirs)
        assert versions(average)[: len(SHAPES)] == [UPDATES] * len(SHAPES)
        for mine, other in zip(wholes(average), wholes(theirs), strict=True):
            atol = torch.finfo(torch.float32).eps if function in LERPS else 0.0
            torch.testing.assert_close(mine, other, rtol=atol, atol=atol)


def averages_of_fsdp() -> None:
    """Buffers are whole beside the parameters' shards, which torch can't average together."""
    for dtype in (None, torch.float32):
        make = {"multi_avg_fn": ours.get_ema_multi_avg_fn(0.9), "use_buffers": True, "dtype": dtype}
        kind = torch.float32 if dtype is None else torch.bfloat16

        def model(kind: torch.dtype = kind) -> nn.Module:
            made = make_model().to(kind)
            made.register_buffer("mean", random((5,), 1).to(kind))
            return made

        average = ours.AveragedModel(model(), **make)
        sharded(average.module)  # FSDP copies no module, so it shards the copy
        updated(average, sharded(model()), fast=True)
        whole = updated(ours.AveragedModel(model(), **make), model(), fast=True)
        assert any(isinstance(p, DTensor) for p in average.parameters())
        assert_identical(wholes(average), wholes(whole))


def lists_of_dtensors() -> None:
    """As a user's own function may be called with."""
    averages, newest = (list(Pieces().parameters()) for _ in range(2))
    whole = [full(p.detach()).clone() for p in averages]
    with torch.no_grad():
        for p in newest:
            p.mul_(2)
        function = ours.get_ema_multi_avg_fn(0.5)
        assert _C.average_tensors(function, averages, newest, 1)
    for p, before in zip(averages, whole, strict=True):
        assert_identical(full(p.detach()), before + 0.5 * before)


def averages_placed_otherwise_are_torchs() -> None:
    """Nothing has changed when our function says so."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def one(shape: tuple[int, ...], placement: Any) -> nn.Module:
        made = nn.Module()
        made.p = Parameter(placed(random(shape, 1), mesh, (placement,)))
        return made

    cases = [(Shard(0), Shard(1)), (Shard(0), Replicate()), (Replicate(), Partial())]
    for to, source in cases:
        average = ours.AveragedModel(one((4, 8), to))
        before = wholes(average)
        assert not _C.update_parameters(average, one((4, 8), source))
        assert_identical(wholes(average), before)
    average = ours.AveragedModel(one((4, 8), Partial()))
    assert not _C.update_parameters(average, one((4, 8), Partial()))
    # Pieces that are as large on some ranks, of another whole; and a whole tensor.
    average = ours.AveragedModel(one((2 * dist.get_world_size() - 1,), Shard(0)))
    assert not _C.update_parameters(average, one((2 * dist.get_world_size(),), Shard(0)))
    plain = nn.Module()
    plain.p = Parameter(random((4, 8), 2))
    for pair in ((plain, one((4, 8), Replicate())), (one((4, 8), Replicate()), plain)):
        assert not _C.update_parameters(ours.AveragedModel(pair[0]), pair[1])


ALL = [
    averages_of_dtensors,
    averages_of_fsdp,
    lists_of_dtensors,
    averages_placed_otherwise_are_torchs,
]
