"""Steps during the backward pass on several ranks, for test_distributed.py."""

from __future__ import annotations

import importlib
import re
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import CLASS_CASES, Case
from helpers import assert_identical, kernels, make_params, random
from rank_checks import (
    ATOL,
    MAIN,
    RTOL,
    STEPS,
    assert_close,
    ddp,
    fsdp,
    learned,
    make_model,
    own_batch,
    sharded,
    train,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import StepLR

import fusedopt

ROOT = Path(__file__).resolve().parents[1]
SMALL_BUCKETS = {"bucket_cap_mb": 1e-4}  # several, which threads of gloo's step side by side
UNSTEPPED = 2  # ZeRO knows which parameters DDP puts together only after so many passes


def our(case: Case) -> Any:
    return getattr(fusedopt, case.name)


def backward(model: Any, steps: Iterable[int] = range(STEPS)) -> None:
    """Training without a step of the loop's own."""
    for seed in steps:
        model.zero_grad()
        model(own_batch(seed)).square().mean().backward()


def fused_ddp_equals_ddp() -> None:
    """The same bits, and the same gradients left behind; also where torch has no such path.

    With more than two ranks sums may have another order, in buckets of another size.
    """
    same = assert_identical if dist.get_world_size() == 2 else assert_close
    for i, each in enumerate(CLASS_CASES):
        model = DistributedDataParallel(
            make_model(), gradient_as_bucket_view=i % 2 == 0, **SMALL_BUCKETS
        )
        model._register_fused_optim(our(each), **each.kwargs)
        backward(model)
        params = list(model.parameters())
        theirs = [p for group in ddp(each).param_groups for p in group["params"]]
        same([p.detach() for p in params], [p.detach() for p in theirs])
        same([p.grad for p in params], [p.grad for p in theirs])


def fused_ddp_of_some_parameters() -> None:
    """And torch's own class, which stays what it was."""
    results = []
    for module in (fusedopt, torch.optim):
        model = DistributedDataParallel(make_model())
        before = [p.detach().clone() for p in model.parameters()]
        some = list(model.parameters())[:3]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model._register_fused_optim(module.AdamW, 0.05, optim_params=some, eps=1e-3)
        backward(model)
        results.append([p.detach() for p in model.parameters()])
        moved = [not torch.equal(p, q) for p, q in zip(results[-1], before, strict=True)]
        assert moved == [True] * 3 + [False] * 3
    assert_close(*results)


def fused_ddp_steps_unused_parameters_by_zeros() -> None:
    """As with torch's own class; the loop leaves them as they are."""
    for cls in (fusedopt.AdamW, torch.optim.AdamW):
        net = make_model()
        net.append(nn.Linear(3, 3).double())
        net.forward = lambda x, used=net[:-1]: used(x)  # type: ignore[method-assign]
        model = DistributedDataParallel(net, find_unused_parameters=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model._register_fused_optim(cls, lr=0.5, weight_decay=0.1)
        before = net[-1].weight.detach().clone()
        backward(model)
        assert_close([net[-1].weight.detach()], [before * 0.95**STEPS])


def overlapped(model: DistributedDataParallel) -> Any:
    """Registers MAIN's class, and returns the functional optimizer, which knows all parameters."""
    from torch.distributed.algorithms._optimizer_overlap import _as_overlapped_optim

    fused = _as_overlapped_optim(our(MAIN), None, **MAIN.kwargs)
    fused.register_ddp(model)
    functional = fused._opt_hook_state.functional_optimizer
    first, *others = model.parameters()
    functional.optimizer.add_param_group({"params": [first], "weight_decay": 0.3})
    for p in others:
        functional.step_param(p, None)
    return functional


def state_of_fused_ddp() -> None:
    """Groups, a scheduler, state and a checkpoint are those of an optimizer of all parameters."""
    model = DistributedDataParallel(make_model())
    first, *others = model.parameters()
    groups = [{"params": others}, {"params": [first], "weight_decay": 0.3}]
    plain = MAIN.make(groups)
    scheduler = StepLR(plain, step_size=2, gamma=0.5)
    for seed in range(2 * STEPS):
        train(model, plain, own_batch, [seed])
        scheduler.step()

    model = DistributedDataParallel(make_model(), **SMALL_BUCKETS)
    saved: dict[str, Any] = {}
    for steps in (range(STEPS), range(STEPS, 2 * STEPS)):
        functional = overlapped(model)
        optimizer = functional.optimizer
        assert type(optimizer) is our(MAIN)
        scheduler = StepLR(optimizer, step_size=2, gamma=0.5)
        if saved:
            optimizer.load_state_dict(saved["optimizer"])
            scheduler.load_state_dict(saved["scheduler"])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for seed in steps:
                backward(model, [seed])
                scheduler.step()
        assert kernels(optimizer) == {MAIN.name.lower()}
        saved = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
        weights = model.state_dict()
        model = DistributedDataParallel(make_model(), **SMALL_BUCKETS)
        model.load_state_dict(weights)
    same = assert_identical if dist.get_world_size() == 2 else assert_close
    same(learned(optimizer), learned(plain))


def overlapping_zero_equals_ddp() -> None:
    """With gloo by another name: torch refuses it by name, as its interleaved hook may hang there.

    That hook runs in two threads of gloo's at once, which share what they count.
    """
    from torch.distributed.algorithms.ddp_comm_hooks.ddp_zero_hook import hook_with_zero_step
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
    from torch.distributed.optim import ZeroRedundancyOptimizer

    group = dist.new_group(backend="cpu:gloo")
    same = assert_identical if dist.get_world_size() == 2 else assert_close
    for i, each in enumerate(CLASS_CASES):
        model = DistributedDataParallel(make_model(), process_group=group, **SMALL_BUCKETS)
        zero = ZeroRedundancyOptimizer(
            model.parameters(),
            optimizer_class=our(each),
            process_group=group,
            overlap_with_ddp=True,
            **each.kwargs,
        )
        hook = hook_with_zero_step(allreduce_hook, model, zero, shard_buckets=i % 2 == 0)
        model.register_comm_hook(None, hook)
        backward(model, range(UNSTEPPED + STEPS))
        assert len(zero._overlap_info.params_per_bucket) > 1
        zero.param_groups[0]["lr"] *= 0.5
        backward(model, [9])

        reference = DistributedDataParallel(make_model())
        optimizer = each.make(reference.parameters())
        train(reference, optimizer, own_batch, range(UNSTEPPED, UNSTEPPED + STEPS))
        optimizer.param_groups[0]["lr"] *= 0.5
        train(reference, optimizer, own_batch, [9])
        same([p.detach() for p in model.parameters()], [p.detach() for p in reference.parameters()])
        zero.consolidate_state_dict(to=0)
        if dist.get_rank() == 0:
            same(zero.state_dict()["state"], optimizer.state_dict()["state"])
    own = type("Own", (fusedopt.Adam,), {})
    with pytest.raises(ValueError, match="no supported functional optimizer"):
        ZeroRedundancyOptimizer(make_model().parameters(), own, overlap_with_ddp=True)


def hooks_on_fsdp_equal_the_loop() -> None:
    """FSDP2 calls them with the reduced gradient. One optimizer takes what all had learned."""
    model = sharded(make_model())
    optimizers = {p: MAIN.make([p]) for p in model.parameters()}

    def step(p: torch.Tensor) -> None:
        optimizers[p].step()
        p.grad = None

    for p in optimizers:
        p.register_post_accumulate_grad_hook(step)
    backward(model)
    reference = fsdp(MAIN)
    assert_identical([learned(o)[0] for o in optimizers.values()], learned(reference))

    options = StateDictOptions(flatten_optimizer_state_dict=True)
    saved = get_optimizer_state_dict(model, tuple(optimizers.values()), options=options)
    other = sharded(make_model())
    other.load_state_dict(model.state_dict())
    together = train(other, MAIN.make(other.parameters()), own_batch, [7])  # the state's names
    other.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other, together, saved, options=options)
    assert_identical(learned(together), learned(reference))


def ours_equals_torchs_functional() -> None:
    """By list and one by one, for the classes that torch has; torch's Adagrad mixes lists up."""
    from torch.distributed.optim import utils as torchs_map

    for each in CLASS_CASES:
        if getattr(torch.optim, each.name, None) not in torchs_map.functional_optim_map:
            continue
        found = []
        for cls in (our(each), getattr(torch.optim, each.name)):
            params = make_params(seed=1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = torchs_map.functional_optim_map[cls](params, **each.kwargs)
            for t in range(STEPS):
                grads: list[Any] = [random(p.shape, 10 * t + i) for i, p in enumerate(params)]
                if t == 1 and each.name != "Adagrad":
                    grads[2] = None
                made.step(grads)
                if hasattr(made, "step_param") and each.name in ("SGD", "Adam", "AdamW"):
                    made.step_param(params[1], random(params[1].shape, t))
            assert all(p.grad is None for p in params)
            found.append([[p.detach(), dict(made.state[p])] for p in params])
        torch.testing.assert_close(*found, rtol=RTOL, atol=ATOL)


def the_documentations_lines_run() -> None:
    """Those that need a process group, which other examples haven't."""
    text = (ROOT / "docs" / "per-parameter.md").read_text()
    (lines,) = re.findall(r"^```py\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    model = nn.Linear(64, 10)
    before = model.weight.detach().clone()
    names: dict[str, Any] = {"model": model}
    exec(compile(lines, "per-parameter.md", "exec"), names)
    assert not torch.equal(model.weight, before)
    assert len(names["saved"]["state"]) == 2


def bad_options_are_refused_at_once() -> None:
    model = DistributedDataParallel(make_model())
    for options, error, match in (
        ({"lr": -1.0}, ValueError, "Invalid learning rate"),
        ({"no_such": 1}, TypeError, "no_such"),
        ({"max_grad_norm": 1.0}, ValueError, "max_grad_norm"),
        ({"stochastic_rounding": True}, ValueError, "stochastic_rounding"),
    ):
        with pytest.raises(error, match=match):
            model._register_fused_optim(fusedopt.AdamW, **options)
    with pytest.raises(ValueError, match="does not have a functional counterpart"):
        model._register_fused_optim(type("Own", (fusedopt.Adam,), {}))
    model._register_fused_optim(fusedopt.AdamW)  # nothing of the others has been left behind
    backward(model)


def the_map_is_filled_whenever_it_is_imported() -> None:
    from torch.distributed.optim import as_functional_optim
    from torch.distributed.optim import utils as torchs_map

    before = dict(torchs_map.functional_optim_map)
    assert {our(each) for each in CLASS_CASES} < before.keys()
    again = importlib.reload(torchs_map)
    assert again.functional_optim_map.keys() == before.keys()
    assert again.__loader__ is again.__spec__.loader
    assert type(again.__loader__).__module__.startswith(("importlib", "_frozen_importlib"))
    assert as_functional_optim(fusedopt.Lion, lr=0.1).param_groups[0]["lr"] == 0.1


def remote_steps_are_as_before() -> None:
    """DistributedOptimizer has TorchScript compile what torch's map has for torch's classes."""
    from torch.distributed import autograd, rpc
    from torch.distributed.optim import DistributedOptimizer

    with tempfile.TemporaryDirectory() as folder:
        options = rpc.TensorPipeRpcBackendOptions(init_method=f"file://{folder}/rendezvous")
        rpc.init_rpc("alone", rank=0, world_size=1, rpc_backend_options=options)
        try:
            param = torch.nn.Parameter(torch.ones(3))
            optimizer = DistributedOptimizer(
                fusedopt.SGD, [rpc.RRef(param)], lr=0.5, max_grad_norm=0.1
            )
            with autograd.context() as context:
                autograd.backward(context, [param.sum()])
                optimizer.step(context)
        finally:
            rpc.shutdown()
    torch.testing.assert_close(param.detach(), torch.full((3,), 1 - 0.05 / 3**0.5))


ALL = (
    fused_ddp_equals_ddp,
    fused_ddp_of_some_parameters,
    fused_ddp_steps_unused_parameters_by_zeros,
    state_of_fused_ddp,
    overlapping_zero_equals_ddp,
    hooks_on_fsdp_equal_the_loop,
    ours_equals_torchs_functional,
    the_documentations_lines_run,
    bad_options_are_refused_at_once,
    the_map_is_filled_whenever_it_is_imported,
    remote_steps_are_as_before,
)
