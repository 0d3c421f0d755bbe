"""What each rank does in test_distributed.py: the same code on all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from cases import CLASS_CASES, Case, case
from helpers import assert_identical, kernels, random
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

import fusedopt

STEPS = 3
# Ranks add their gradients in another order than one process does, and with more than two the
# collectives of DDP and FSDP2 differ too: each sum by a few times 1e-16. The steps' roots and
# quotients pass on relative errors; these leave room for where elements nearly cancel.
RTOL, ATOL = 1e-9, 1e-12
MAIN = case("AdamW-all")


def make_model(width: int = 7) -> nn.Sequential:
    """The same on all ranks. Four ranks can't share 7 or 5 rows evenly; of 1, most get none.

    torch's tensor parallelism asks for a `width` that they can.
    """
    torch.manual_seed(0)
    layers = nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 5), nn.Tanh(), nn.Linear(5, 1)
    return nn.Sequential(*layers).double()


def sharded(model: nn.Sequential, **kwargs: Any) -> nn.Sequential:
    """FSDP2, each linear layer by itself."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, **kwargs)
    fully_shard(model, **kwargs)
    return model


def whole_batch(seed: int) -> Tensor:
    """The same on all ranks, whatever their number."""
    return random((8, 6), seed)


def own_batch(seed: int) -> Tensor:
    """This rank's part."""
    return whole_batch(seed)[dist.get_rank() :: dist.get_world_size()]


def train(
    model: nn.Module,
    optimizer: Optimizer,
    batch: Callable[[int], Tensor],
    steps: Iterable[int] = range(STEPS),
) -> Optimizer:
    for seed in steps:
        optimizer.zero_grad()
        model(batch(seed)).square().mean().backward()
        optimizer.step()
    return optimizer


def full(value: Any) -> Any:
    """The whole tensor, gathered from all ranks (which gloo, as NCCL, doesn't do with int16)."""
    if not isinstance(value, DTensor):
        return value
    wide = value.int() if value.dtype == torch.int16 else value
    return wide.full_tensor().to(value.dtype)


def learned(optimizer: Optimizer) -> list[Any]:
    """Parameters and states, whole."""
    return [
        [full(p.detach()).clone(), {k: full(v).clone() for k, v in optimizer.state[p].items()}]
        for group in optimizer.param_groups
        for p in group["params"]
    ]


def assert_close(ours: list[Any], theirs: list[Any]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=RTOL, atol=ATOL)


def ddp(case: Case, width: int = 7) -> Optimizer:
    model = DistributedDataParallel(make_model(width))
    return train(model, case.make(model.parameters()), own_batch)


def fsdp(case: Case, **kwargs: Any) -> Optimizer:
    model = sharded(make_model(), **kwargs)
    optimizer = train(model, case.make(model.parameters()), own_batch)
    assert kernels(optimizer) == {case.name.lower()}
    return optimizer


def ddp_equals_one_process() -> None:
    for each in CLASS_CASES:
        model = make_model()
        alone = train(model, each.make(model.parameters()), whole_batch)
        assert_close(learned(ddp(each)), learned(alone))


def fsdp_equals_ddp() -> None:
    """Two ranks: with the same bits, because the sum of two numbers has no order."""
    same = assert_identical if dist.get_world_size() == 2 else assert_close
    for each in CLASS_CASES:
        ours = fsdp(each)
        assert isinstance(ours.param_groups[0]["params"][0], DTensor)
        same(learned(ours), learned(ddp(each)))


def zero_equals_ddp() -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # it warns while it is imported

    for each in CLASS_CASES:
        model = DistributedDataParallel(make_model())
        optimizer = ZeroRedundancyOptimizer(
            model.parameters(), optimizer_class=getattr(fusedopt, each.name), **each.kwargs
        )
        train(model, optimizer, own_batch)
        assert kernels(optimizer.optim) == {each.name.lower()}
        optimizer.consolidate_state_dict(to=0)
        reference = ddp(each)
        for p, q in zip(model.parameters(), reference.param_groups[0]["params"], strict=True):
            assert_identical(p, q)
        if dist.get_rank() == 0:
            assert_identical(optimizer.state_dict()["state"], reference.state_dict()["state"])


def two_dimensions_equal_ddp() -> None:
    """Sharded within replicas; and sharded data-parallel within tensor-parallel."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    assert_close(learned(fsdp(MAIN, mesh=mesh)), learned(ddp(MAIN)))

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    model = make_model(width=8)
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    sharded(model, mesh=mesh["dp"])
    rank = mesh["dp"].get_local_rank()
    optimizer = MAIN.make(model.parameters())
    train(model, optimizer, lambda seed: whole_batch(seed)[rank::2])
    rows = fusedopt.explain(optimizer).rows
    assert {row.kernel for row in rows} == {"adamw"}, rows
    assert_close(learned(optimizer), learned(ddp(MAIN, width=8)))


def tensor_parallel_equals_one_process() -> None:
    """Weights cut by rows and by columns, and a bias that every rank has."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for each in CLASS_CASES:
        model = make_model(width=8)
        alone = train(model, each.make(model.parameters()), whole_batch)
        model = make_model(width=8)
        parallelize_module(model[:3], mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        plan = [model[0].weight, model[2].weight, model[2].bias]
        assert [p.placements for p in plan] == [(Shard(0),), (Shard(1),), (Replicate(),)]
        optimizer = train(model, each.make(model.parameters()), whole_batch)
        assert kernels(optimizer) == {each.name.lower()}
        assert_close(learned(optimizer), learned(alone))


def noise_is_the_wholes() -> None:
    """An element's noise is the same wherever it lies: cut by rows or columns, or not at all."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    shapes = ((7, 6), (5,), (8, 3, 5), (1, 9))

    def values(seed: int) -> list[Tensor]:
        return [random(shape, 10 * seed + i).bfloat16() for i, shape in enumerate(shapes)]

    modes: list[dict[str, Any]] = [
        {"stochastic_rounding": True, "seed": 3},
        {"stochastic_rounding": True, "master_weights": True},
    ]
    for each in CLASS_CASES:
        for mode in modes:
            alone = each.make([Parameter(v) for v in values(0)], **mode)
            steps: list[list[Tensor]] = [values(1 + t) for t in range(STEPS)]
            for grads in steps:
                for p, grad in zip(alone.param_groups[0]["params"], grads, strict=True):
                    p.grad = grad
                alone.step()
            for dim in (0, -1, None):
                placed = [Replicate() if dim is None else Shard(dim % len(s)) for s in shapes]

                def cut(tensors: list[Tensor], where: list[Any] = placed) -> list[DTensor]:
                    pairs = zip(tensors, where, strict=True)
                    return [distribute_tensor(t, mesh, [placement]) for t, placement in pairs]

                ours = each.make([Parameter(v) for v in cut(values(0))], **mode)
                for grads in steps:
                    pairs = zip(ours.param_groups[0]["params"], cut(grads), strict=True)
                    for p, grad in pairs:
                        p.grad = grad
                    ours.step()
                assert kernels(ours) == {each.name.lower()}
                assert_identical(learned(ours), learned(alone))


def partial_gradients_are_torchs() -> None:
    """A norm between shards gets summands as its gradient, and torch adds them up."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    results = []
    for module in (fusedopt, torch.optim):
        model = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5)).double()
        nn.init.normal_(model[1].weight, generator=torch.Generator().manual_seed(1))
        nn.init.zeros_(model[1].bias)
        parallelize_module(model, mesh, {"0": SequenceParallel(sequence_dim=0)})
        model[0].register_forward_hook(lambda *call: call[2].full_tensor())
        optimizer = train(model, MAIN.make(model.parameters(), module=module), whole_batch)
        assert model[0].weight.grad.placements == (Partial(),)
        results.append(optimizer)
    assert kernels(results[0]) == {"adamw", "torch"}
    assert_close(*map(learned, results))


def overflow_on_one_rank_skips_all() -> None:
    model = sharded(make_model())
    optimizer = MAIN.make(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def step(seed: int, broken: bool) -> None:
        optimizer.zero_grad()
        scaler.scale(model(own_batch(seed)).square().mean()).backward()
        if broken and dist.get_rank() == 1:
            model[0].weight.grad.to_local().fill_(torch.inf)
        scaler.step(optimizer)
        scaler.update()

    step(0, broken=False)
    before = learned(optimizer)
    step(1, broken=True)
    assert scaler.get_scale() == 4.0
    assert_identical(learned(optimizer), before)
    step(2, broken=False)
    # Scaling by powers of two is exact, so it is as if there were none.
    plain = sharded(make_model())
    without = train(plain, MAIN.make(plain.parameters()), own_batch, [0, 2])
    assert_identical(learned(optimizer), learned(without))


def save(folder: Path) -> None:
    model = sharded(make_model())
    optimizer = train(model, MAIN.make(model.parameters()), own_batch)
    save_as(folder / "checkpoint", model, optimizer)


def save_as(path: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Saves a checkpoint, and beside it what was learned, whole."""
    dcp.save(states_of(model, optimizer), checkpoint_id=path)
    values = learned(optimizer)
    if dist.get_rank() == 0:
        torch.save(values, path.with_suffix(".pt"))


def load_from(path: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Loads it, and compares the bits."""
    state = states_of(model, optimizer)
    dcp.load(state, checkpoint_id=path)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    assert_identical(learned(optimizer), torch.load(path.with_suffix(".pt")))


def states_of(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }


def load(folder: Path) -> None:
    """On another number of ranks, and with another optimizer's options, which are loaded too."""
    torch.manual_seed(1)
    model = sharded(make_model())
    optimizer = fusedopt.AdamW(model.parameters(), amsgrad=True)
    load_from(folder / "checkpoint", model, optimizer)
    assert kernels(optimizer) == {"adamw"}
    train(model, optimizer, own_batch, [STEPS])
    reference = make_model()
    alone = MAIN.make(reference.parameters())
    train(reference, alone, whole_batch, range(STEPS + 1))
    assert_close(learned(optimizer), learned(alone))


def save_rounded(folder: Path) -> None:
    """As `save`, in bfloat16 with noise and remainders."""
    model, optimizer = rounded()
    train(model, optimizer, lambda seed: whole_batch(seed).bfloat16())
    save_as(folder / "rounded", model, optimizer)


def load_rounded(folder: Path) -> None:
    """On another number of ranks: the same bits."""
    model, optimizer = rounded()
    load_from(folder / "rounded", model, optimizer)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def rounded() -> tuple[nn.Module, Optimizer]:
    model = sharded(make_model().bfloat16())
    return model, fusedopt.AdamW(
        model.parameters(), lr=0.01, stochastic_rounding=True, master_weights=True, seed=4
    )


def state_dicts() -> None:
    """By name: sharded as they are, whole on all ranks, and whole on the first one only."""
    for options in (
        StateDictOptions(),
        StateDictOptions(full_state_dict=True),
        StateDictOptions(full_state_dict=True, cpu_offload=True, broadcast_from_rank0=True),
    ):
        model = sharded(make_model())
        optimizer = train(model, MAIN.make(model.parameters()), own_batch)
        saved = get_optimizer_state_dict(model, optimizer, options=options)
        weights = get_model_state_dict(model, options=options)
        other = sharded(make_model())
        # Whole tensors are cut only where the optimizer has state of the same name.
        loaded = fusedopt.AdamW(other.parameters(), lr=0.5, amsgrad=True)
        set_model_state_dict(other, weights, options=options)
        set_optimizer_state_dict(other, loaded, saved, options=options)
        assert_identical(learned(loaded), learned(optimizer))
        assert kernels(loaded) == {"adamw"}
        # Loaded state may be the saved one's memory, so they don't step side by side.
        train(other, loaded, own_batch, [STEPS])
        reference = sharded(make_model())
        alone = MAIN.make(reference.parameters())
        train(reference, alone, own_batch, range(STEPS + 1))
        assert_identical(learned(loaded), learned(alone))
