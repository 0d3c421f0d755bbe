"""Norms and clipping on several ranks, for test_distributed.py: the same code on all at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import assert_identical, kernels, random
from rank_checks import (
    MAIN,
    STEPS,
    assert_close,
    full,
    learned,
    make_model,
    own_batch,
    sharded,
    whole_batch,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel

import fusedopt

SHAPES = ((7, 6), (5,), (8, 3), (1, 9), ())


def wholes() -> list[Tensor]:
    return [random(shape, i) * 3 for i, shape in enumerate(SHAPES)]


def placed(whole: Tensor, mesh: DeviceMesh, placements: tuple[Any, ...]) -> DTensor:
    """A DTensor of this value; of Partial, each rank has a summand."""
    if not any(isinstance(p, Partial) for p in placements):
        return distribute_tensor(whole, mesh, placements)
    parts = [Replicate() if isinstance(p, Partial) else p for p in placements]
    local = distribute_tensor(whole, mesh, parts).to_local()
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    for d, placement in enumerate(placements):
        if isinstance(placement, Partial):
            share = torch.tensor([1.0 + rank for rank in range(mesh.size(d))], dtype=local.dtype)
            local = local * (share / share.sum())[coordinate[d]]
    return DTensor.from_local(local, mesh, placements, run_check=False)


@contextmanager
def exchanges() -> Iterator[list[int]]:
    """How many numbers each exchange had."""
    seen: list[int] = []
    original = dist.all_reduce

    def noted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(tensor.numel())
        return original(tensor, *args, **kwargs)

    dist.all_reduce = noted
    try:
        yield seen
    finally:
        dist.all_reduce = original


def lists() -> Iterator[tuple[list[Any], int, bool]]:
    """Tensors with these wholes, how many exchanges they need, and whether all are on one mesh."""
    world = dist.get_world_size()
    line = init_device_mesh("cpu", (world,))

    def on(mesh: DeviceMesh, *placements: Any) -> Callable[[Tensor], DTensor]:
        return lambda whole: placed(whole, mesh, placements)

    cut, columns, copies, sums = (on(line, p) for p in (Shard(0), Shard(1), Replicate(), Partial()))
    plain = torch.clone
    yield [cut, cut, columns, columns, copies], 1, True
    yield [copies, copies, copies, copies, copies], 0, True
    yield [sums, cut, sums, copies, sums], 1, True
    yield [plain, cut, copies, plain, plain], 1, False
    if world == 4:
        square = init_device_mesh("cpu", (2, 2))
        both = on(square, Shard(0), Shard(0))
        rows = on(square, Replicate(), Shard(0))
        other = on(square, Shard(1), Replicate())
        yield (
            [both, rows, other, on(square, Shard(1), Shard(0)), on(square, Partial(), Replicate())],
            2,
            True,
        )
        yield [rows, rows, rows, rows, on(square, Replicate(), Replicate())], 1, True
        yield [cut, both, plain, other, copies], 3, False


def norms_are_the_wholes() -> None:
    """Shards add up, replicas count once, summands are summed first; one number is exchanged."""
    for makers, expected_exchanges, one_mesh in lists():
        for order in (2.0, 1.0, math.inf, -math.inf):
            tensors = [make(whole) for make, whole in zip(makers, wholes(), strict=True)]
            whole = torch.cat([whole.flatten() for whole in wholes()])
            with exchanges() as seen:
                norm = fusedopt.get_total_norm(tensors, order)
            assert seen == [1] * expected_exchanges, (makers, seen)
            assert isinstance(norm, DTensor) == one_mesh
            torch.testing.assert_close(
                full(norm), torch.linalg.vector_norm(whole, order), rtol=1e-12, atol=0
            )
            norms: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(norms, float(full(norm)))
            assert len(set(norms)) == 1, norms


def no_square_overflows() -> None:
    """Nor float32's range; also where torch computes a part, that of a tensor negated lazily."""
    for makers, _, _ in lists():
        for size, narrow in ((1e200, 1e30), (1e-200, 0.0)):
            sizes = [torch.tensor(size, dtype=torch.float64) for _ in SHAPES]
            sizes[2] = torch.tensor(narrow)  # in float32
            values = [w.to(s.dtype) * s for w, s in zip(wholes(), sizes, strict=True)]
            tensors = [make(value) for make, value in zip(makers, values, strict=True)]
            negated = torch.full((3,), size * 1j, dtype=torch.complex128).conj().imag
            for extra in ([], [negated]):
                norm = fusedopt.get_total_norm([*tensors, *extra])
                expected = math.hypot(*(x for v in [*values, *extra] for x in v.flatten().tolist()))
                assert math.isclose(float(full(norm)), expected, rel_tol=1e-7)
        largest = [make(torch.full(s, 3e38)) for make, s in zip(makers, SHAPES, strict=True)]
        norm = full(fusedopt.get_total_norm(largest))
        elements = sum(math.prod(shape) for shape in SHAPES)
        assert math.isclose(float(norm), 3e38 * math.sqrt(elements), rel_tol=1e-6)


def clipping_is_the_wholes() -> None:
    for makers, _, _ in lists():
        params = []
        for make, whole in zip(makers, wholes(), strict=True):
            grad = make(whole)
            param = Parameter(torch.zeros_like(grad))
            param.grad = grad
            params.append(param)
        norm = fusedopt.clip_grad_norm_(params, 1.0)
        expected = [Parameter(torch.zeros_like(whole)) for whole in wholes()]
        for param, whole in zip(expected, wholes(), strict=True):
            param.grad = whole
        torch.testing.assert_close(full(norm), torch.nn.utils.clip_grad_norm_(expected, 1.0))
        for param, twin in zip(params, expected, strict=True):
            torch.testing.assert_close(full(param.grad), twin.grad)


def one_bad_gradient_is_every_ranks() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole = random((8, 3), 0)
    whole[-1, -1] = math.nan  # on the last rank
    param = Parameter(distribute_tensor(torch.zeros(8, 3).double(), mesh, [Shard(0)]))
    param.grad = distribute_tensor(whole, mesh, [Shard(0)])
    with pytest.raises(RuntimeError, match="non-finite"):
        fusedopt.clip_grad_norm_([param], 1.0, error_if_nonfinite=True)
    assert_identical(full(param.grad), whole)


def train(
    model: nn.Module, batch: Callable[[int], Tensor], limit: float | None, by_step: bool
) -> Any:
    """Trains, clipped by the step or before it."""
    optimizer = MAIN.make(model.parameters(), max_grad_norm=limit if by_step else None)
    for seed in range(STEPS):
        optimizer.zero_grad()
        model(batch(seed)).square().mean().backward()
        if limit is not None and not by_step:
            fusedopt.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
    return optimizer


def clipped_training_equals_one_process() -> None:
    """DDP, whose gradients are reduced already; FSDP2; and tensor parallelism with a replica."""
    limit = 0.01
    for by_step in (True, False):
        alone = train(make_model(width=8), whole_batch, limit, by_step)
        assert_close(
            learned(train(DistributedDataParallel(make_model(8)), own_batch, limit, by_step)),
            learned(alone),
        )
        ours = train(sharded(make_model(8)), own_batch, limit, by_step)
        assert_close(learned(ours), learned(alone))
        assert kernels(ours) == {MAIN.name.lower()}
        if by_step:
            torch.testing.assert_close(full(ours.grad_norm), alone.grad_norm)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        model = make_model(width=8)
        parallelize_module(model[:3], mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        assert_close(learned(train(model, whole_batch, limit, by_step)), learned(alone))
    unclipped = train(make_model(width=8), whole_batch, None, True)
    assert not torch.equal(learned(unclipped)[0][0], learned(alone)[0][0])


ALL = (
    norms_are_the_wholes,
    no_square_overflows,
    clipping_is_the_wholes,
    one_bad_gradient_is_every_ranks,
    clipped_training_equals_one_process,
)
