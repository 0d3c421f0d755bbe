"""What holds where there are no kernels: test_without_kernels.py runs it with FUSEDOPT_KERNELS=0.

Everything is torch's own step then, so results have the bits of torch.optim's.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import fusedopt

NAMES = [name for name in fusedopt._C.optimizers() if hasattr(torch.optim, name)]
OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "capturable": True},
    "Adagrad": {"lr_decay": 0.1, "initial_accumulator_value": 0.3, "capturable": True},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Adam": {"amsgrad": True, "weight_decay": 0.1},
    "NAdam": {"decoupled_weight_decay": True, "weight_decay": 0.1},
}


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def backward(net: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in net.parameters():
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def same(a: Any, b: Any) -> bool:
    """Compares bits, in whatever a state dict is made of."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def pair(name: str, **kwargs: Any) -> tuple[list[nn.Module], list[Any]]:
    dtype = kwargs.pop("dtype", torch.float32)
    nets = [model(dtype), model(dtype)]
    ours = getattr(fusedopt, name)(nets[0].parameters(), lr=0.01, **kwargs)
    added = {*ours._added_options, "max_grad_norm"}
    kept = {key: value for key, value in kwargs.items() if key not in added}
    return nets, [ours, getattr(torch.optim, name)(nets[1].parameters(), lr=0.01, **kept)]


def test_there_are_none() -> None:
    assert fusedopt._C.optimizers().keys() >= {"AdamW", "Lion"} and len(NAMES) == 11
    assert set(fusedopt.__all__) >= {"AdamW", "Lion", "explain", "clip_grad_norm_"}
    row = fusedopt.explain(fusedopt.AdamW(model().parameters())).rows[0]
    assert (row.kernel, row.reason, row.tensors) == ("torch", "FUSEDOPT_KERNELS=0", 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_steps_have_torchs_bits(name: str, dtype: torch.dtype) -> None:
    # torch's foreach path overwrites gradients under Nesterov; as a fallback it isn't taken.
    more = {"foreach": False} if name == "SGD" else {}
    nets, both = pair(name, dtype=dtype, **OPTIONS.get(name, {}), **more)
    rates = [torch.optim.lr_scheduler.ExponentialLR(each, 0.9) for each in both]
    for step in range(4):
        for net, optimizer, rate in zip(nets, both, rates, strict=True):
            backward(net, step)
            optimizer.step()
            rate.step()
            optimizer.zero_grad(set_to_none=step % 2 == 0)
        assert same(nets[0].state_dict(), nets[1].state_dict())
        assert all(p.grad is None or not p.grad.any() for p in nets[0].parameters())
    assert same(both[0].state_dict()["state"], both[1].state_dict()["state"])
    fresh = pair(name, dtype=dtype, **OPTIONS.get(name, {}), **more)[1]
    fresh[0].load_state_dict(both[1].state_dict())
    fresh[1].load_state_dict(both[0].state_dict())
    assert same(fresh[0].state_dict()["state"], fresh[1].state_dict()["state"])


@pytest.mark.parametrize("fused", [None, True, False])
def test_every_argument_is_accepted(fused: bool | None) -> None:
    for name in NAMES:
        nets, both = pair(name, fused=fused, max_grad_norm=0.5)
        for net in nets:
            backward(net, 0)
        total = fusedopt.get_total_norm([p.grad for p in nets[0].parameters()])
        expected = torch.nn.utils.clip_grad_norm_(nets[1].parameters(), 0.5)
        unclipped = [p.grad.clone() for p in nets[0].parameters()]
        both[0].step()
        both[1].step()
        assert torch.equal(both[0].grad_norm, expected) and torch.equal(total, expected)
        assert same([p.grad for p in nets[0].parameters()], unclipped)
        for a, b in zip(*(net.parameters() for net in nets), strict=True):
            torch.testing.assert_close(a, b)


def test_what_has_no_torch_is_refused_at_construction() -> None:
    with pytest.raises(RuntimeError, match="Lion has kernels only.*FUSEDOPT_KERNELS=0"):
        fusedopt.Lion(model().parameters())
    for option in ({"stochastic_rounding": True}, {"state_dtype": torch.bfloat16}):
        with pytest.raises(RuntimeError, match="needs kernels"):
            fusedopt.AdamW(model().parameters(), **option)
    optimizer = fusedopt.AdamW(model().parameters(), stochastic_rounding=False)
    with pytest.raises(RuntimeError, match="param_groups.1.: master_weights needs kernels"):
        optimizer.add_param_group({"params": [torch.zeros(1)], "master_weights": True})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="learning rate"):
        fusedopt.AdamW(model().parameters(), lr=-1.0)


def test_a_gradient_scaler_unscales_and_skips() -> None:
    nets, both = pair("Adam", fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step, overflow in enumerate([False, True, False]):
        for net in nets:
            backward(net, step)
        if overflow:
            next(nets[0].parameters()).grad.fill_(math.inf)
        else:
            both[1].step()
        for param in nets[0].parameters():
            param.grad *= scaler.scale(torch.ones(()))
        scaler.step(both[0])
        scaler.update()
    assert both[0].state_dict()["state"][0]["step"] == 2
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(a, b)


def test_hooks_closures_copies_and_subclasses() -> None:
    calls = []

    class Mine(fusedopt.AdamW):
        def _init_group(self, *args: Any, **kwargs: Any) -> Any:
            calls.append("init")
            return super()._init_group(*args, **kwargs)

    net = model()
    optimizer = Mine(net.parameters())
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    backward(net, 0)
    assert optimizer.step(lambda: 3.0) == 3.0
    assert calls == ["before", "init", "after"]
    plain = fusedopt.AdamW(net.parameters())
    plain.step()
    for copied in (copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
        assert same(copied.state_dict(), plain.state_dict())
        copied.step()
    file = io.BytesIO()
    torch.save(plain.state_dict(), file)
    file.seek(0)
    plain.load_state_dict(torch.load(file))


@pytest.mark.parametrize("name", NAMES)
def test_groups_without_parameters(name: str) -> None:
    """Beside others, torch steps the others; alone, there is nothing to step."""
    nets = [model(), model()]
    for net, module in zip(nets, (fusedopt, torch.optim), strict=True):
        make = getattr(module, name)
        make([{"params": []}], lr=0.01).step()
        optimizer = make([{"params": []}, {"params": net.parameters()}], lr=0.01)
        backward(net, 0)
        optimizer.step()
    assert same(*(list(net.parameters()) for net in nets))


def test_sparse_and_no_gradients() -> None:
    embedding, other = nn.Embedding(10, 3, sparse=True), nn.Linear(3, 2)
    optimizer = fusedopt.SGD([*embedding.parameters(), *other.parameters()], lr=0.5)
    before = embedding.weight.detach().clone()
    embedding(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    assert torch.equal(embedding.weight[0], before[0])
    assert torch.equal(embedding.weight[1:3], before[1:3] - 0.5)


def test_functions_are_torchs() -> None:
    nets = [model(), model()]
    for net in nets:
        backward(net, 0)
    norms = [fusedopt.clip_grad_norm_(nets[0].parameters(), 0.1),
             nn.utils.clip_grad_norm_(nets[1].parameters(), 0.1)]  # fmt: skip
    assert torch.equal(*norms)
    fusedopt.clip_grad_value_(nets[0].parameters(), 0.01)
    nn.utils.clip_grad_value_(nets[1].parameters(), 0.01)
    fusedopt.clip_grads_with_norm_(nets[0].parameters(), 0.1, norms[0])
    nn.utils.clip_grads_with_norm_(nets[1].parameters(), 0.1, norms[0])
    assert same(*([p.grad for p in net.parameters()] for net in nets))
    makers = (fusedopt.swa_utils, torch.optim.swa_utils)
    averages = [m.AveragedModel(n, multi_avg_fn=m.get_ema_multi_avg_fn(0.9))
                for m, n in zip(makers, nets, strict=True)]  # fmt: skip
    for average, net in zip(averages, nets, strict=True):
        for _ in range(3):
            average.update_parameters(net)
            with torch.no_grad():
                next(net.parameters()).add_(1.0)
    assert same(*(average.state_dict() for average in averages))


@pytest.mark.parametrize("module", [fusedopt, torch.optim])
def test_measure_says_that_there_is_nothing_to_compare_with(module: Any) -> None:
    net = model()
    optimizer = module.AdamW(net.parameters())
    backward(net, 0)
    assert "no kernels (FUSEDOPT_KERNELS=0)" in str(fusedopt.measure(optimizer))
