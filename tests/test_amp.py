"""Gradient scaling: `grad_scale` and `found_inf` in the step, and torch's GradScaler around it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import (
    CASES,
    CLASS_CASES,
    DTYPES,
    LAYOUTS,
    MAIN_CASES,
    Case,
    Layout,
    case,
    over,
    sliced,
    with_torch,
)
from helpers import (
    Make,
    all_params,
    assert_identical,
    assert_unchanged,
    contents,
    make_params,
    random,
    set_grads,
    step,
    twins,
)
from torch import Tensor
from torch.amp import GradScaler
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt


def scaled_step(optimizer: Optimizer, scale: float | None, found_inf: float = 0.0) -> None:
    """What GradScaler does around a step of an optimizer that scales by itself."""
    optimizer.grad_scale = None if scale is None else torch.tensor(scale)
    optimizer.found_inf = torch.tensor(found_inf)
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf


@over(DTYPES, "dtype")
@over(CASES, "case")
def test_grad_scale(case: Case, dtype: torch.dtype) -> None:
    """With a power of two as scale, the same bits as with gradients divided beforehand."""
    scaled, plain = make_params(dtype=dtype), make_params(dtype=dtype)
    ours, expected = case.make(scaled), case.make(plain)
    for t in range(3):
        set_grads(scaled, t)
        for p, q in zip(scaled, plain, strict=True):
            q.grad = p.grad.clone()
            p.grad = p.grad * 16
        scaled_step(ours, 16.0)
        expected.step()
    assert_identical(contents(ours), contents(expected))  # gradients are left unscaled


@pytest.mark.parametrize("scale", [3.0, 1000.0])
@over(MAIN_CASES, "case")
def test_any_scale(case: Case, scale: float) -> None:
    def scenario(make: Make) -> Optimizer:
        params = make_params()
        optimizer = make(params)
        ours = type(optimizer).__module__.startswith("fusedopt")
        for t in range(3):
            set_grads(params, t)
            if ours:
                for p in params:
                    p.grad = p.grad * scale
                scaled_step(optimizer, scale)
            else:
                optimizer.step()
        return optimizer

    twins(case, scenario)


@over(MAIN_CASES, "case")
@over(LAYOUTS, "layout")
def test_gradients_of_any_layout_are_unscaled(case: Case, layout: Layout) -> None:
    """In place, element by element, each element once, also where elements share memory."""
    values = random(layout.shape, 0, torch.float32)
    scaled, plain = Parameter(layout.param(values)), Parameter(layout.param(values))
    grad = layout.grad(random(layout.shape, 1, torch.float32))
    scaled.grad, plain.grad = layout.grad(grad * 8), grad
    ours, expected = case.make([scaled]), case.make([plain])
    scaled_step(ours, 8.0)
    expected.step()
    assert_identical(scaled.grad, grad, "gradient")
    assert_identical(scaled.detach(), plain.detach(), "parameter")


def test_memory_around_a_gradient_is_not_touched() -> None:
    around = torch.full((20, 30), 7.0)
    param = Parameter(random((9, 8), 0, torch.float32))
    param.grad = around[2:11, 3:19:2].fill_(4.0)
    scaled_step(fusedopt.AdamW([param]), 4.0)
    assert (param.grad == 1).all()
    assert around.sum() == 7 * (600 - 72) + 72


@pytest.mark.parametrize("scale", [None, 8.0])
@over(CASES, "case")
def test_found_inf_on_the_first_step(case: Case, scale: float | None) -> None:
    """Nothing is changed, and no state made; the next step is the first."""
    params, twin = make_params(), make_params()
    ours, expected = case.make(params), case.make(twin)
    set_grads(params, 0)
    params[1].grad[3] = torch.inf
    before = contents(ours)
    keys = len(ours.state)
    scaled_step(ours, scale, found_inf=1.0)
    assert_unchanged(ours, before)
    assert len(ours.state) == keys
    for t in range(2):
        step(ours, t)
        step(expected, t)
    assert_identical(contents(ours), contents(expected))


@over(CASES, "case")
def test_found_inf_later(case: Case) -> None:
    params = make_params()
    optimizer = case.make(params)
    step(optimizer, 0)
    set_grads(params, 1)
    params[0].grad[0, 0] = torch.nan
    for value in (1.0, 2.0):  # GradScaler adds up the devices' flags
        before = contents(optimizer)
        scaled_step(optimizer, 4.0, found_inf=value)
        assert_unchanged(optimizer, before)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_scale_as_a_one_element_vector(shape: tuple[int, ...]) -> None:
    param = Parameter(torch.ones(3))
    param.grad = torch.full((3,), 8.0)
    optimizer = fusedopt.SGD([param], lr=1.0)
    optimizer.grad_scale = torch.full(shape, 8.0)
    optimizer.found_inf = torch.zeros(shape)
    optimizer.step()
    assert param.tolist() == [0.0] * 3
    assert param.grad.tolist() == [1.0] * 3


@over(with_torch(CLASS_CASES), "case")
def test_step_supports_amp_scaling(case: Case) -> None:
    """GradScaler asks this; torch's own code can't scale, so not where all groups run it."""
    cls = getattr(fusedopt, case.name)
    a, b = make_params([(3,), (3,)])
    assert cls([a])._step_supports_amp_scaling
    assert cls([a], foreach=True)._step_supports_amp_scaling
    assert not cls([a], fused=False)._step_supports_amp_scaling
    mixed = cls([{"params": [a], "fused": False}, {"params": [b]}])
    assert mixed._step_supports_amp_scaling


@pytest.mark.parametrize("kind", ["fused_false", "complex"])
@over(with_torch(MAIN_CASES), "case")
def test_fallback_is_scaled_too(case: Case, kind: str) -> None:
    """Parameters that torch's own code steps, beside ones that ours does."""
    results = []
    for scale in (1.0, 8.0):
        a, b = make_params([(5,), (6,)])
        if kind == "complex":
            b = Parameter(torch.complex(random((6,), 1), random((6,), 2)))
        flags = {"fused": False} if kind == "fused_false" else {}
        optimizer = case.make([{"params": [a]}, {"params": [b], **flags}])
        for t in range(3):
            set_grads([a, b], t)
            for p in (a, b):
                p.grad = p.grad * scale
            scaled_step(optimizer, scale)
        before = contents(optimizer)
        scaled_step(optimizer, scale, found_inf=1.0)
        assert_unchanged(optimizer, before)
        results.append(before)
    assert_identical(results[1], results[0])


@over(MAIN_CASES, "case")
def test_scale_of_a_shared_layout(case: Case) -> None:
    """A strided gradient of a strided parameter, several steps, unscaled each time."""
    results = []
    for scale in (1.0, 4.0):
        param = Parameter(sliced(random((7, 9), 0)))
        optimizer = case.make([param])
        for t in range(3):
            param.grad = sliced(random((7, 9), t + 1) * scale)
            scaled_step(optimizer, scale)
        results.append(contents(optimizer))
    assert_identical(results[1], results[0])


SCRIPT = [0, 1, 0, 0, 1, 0]  # 1: the loss overflows in this iteration


def scaler_run(case: Case, make: Make, clip: bool, script: list[int]) -> Optimizer:
    """A training loop as in torch's AMP documentation."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)
    ).double()
    optimizer = make(model.parameters())
    scaler = GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
    for t, overflow in enumerate(script):
        optimizer.zero_grad()
        loss = model(random((8, 6), t)).square().mean()
        scaler.scale(loss * torch.inf if overflow else loss).backward()
        if clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
    assert not hasattr(optimizer, "grad_scale")
    assert not hasattr(optimizer, "found_inf")
    for p in all_params(optimizer):
        p.grad = None
    return optimizer


@pytest.mark.parametrize("first", [0, 1], ids=["first_good", "first_overflows"])
@pytest.mark.parametrize("clip", [False, True], ids=["plain", "unscale_and_clip"])
@over(MAIN_CASES, "case")
def test_grad_scaler(case: Case, clip: bool, first: int) -> None:
    """The same run as torch's optimizer, which the scaler itself unscales for and skips."""
    twins(case, lambda make: scaler_run(case, make, clip, [first, *SCRIPT]))


@over(MAIN_CASES, "case")
def test_grad_scaler_leaves_gradients_unscaled(case: Case) -> None:
    params = make_params(dtype=torch.float32)
    optimizer = case.make(params)
    scaler = GradScaler("cpu", init_scale=2.0**10)
    loss = torch.stack([(p * p).sum() for p in params]).sum()
    expected = [2 * p.detach() for p in params]
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    for p, grad in zip(params, expected, strict=True):
        assert torch.equal(p.grad, grad)


def test_disabled_grad_scaler() -> None:
    twins(
        case("AdamW-all"),
        lambda make: _disabled_run(make(make_params())),
    )


def _disabled_run(optimizer: Optimizer) -> Optimizer:
    scaler = GradScaler("cpu", enabled=False)
    for t in range(2):
        set_grads(all_params(optimizer), t)
        scaler.step(optimizer)
        scaler.update()
    return optimizer


def test_half_precision_gradients_with_autocast() -> None:
    """bfloat16 autocast around float32 parameters, the usual CPU set-up."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    optimizer = fusedopt.AdamW(model.parameters(), lr=0.05)
    scaler = GradScaler("cpu")
    x = torch.randn(32, 8)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = (model(x).float() - x.sum(1, keepdim=True)).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_a_replaced_step_gets_unscaled_gradients_and_isnt_called_on_overflow() -> None:
    """As torch.optim's unless fused; a scheduler's own wrapper is not somebody else's code."""
    (param,) = make_params([(3,)])
    optimizer = fusedopt.AdamW([param])
    torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    assert "step" in vars(optimizer) and optimizer._step_supports_amp_scaling
    original, seen = optimizer.step, []
    optimizer.step = lambda *args: (seen.append(param.grad.tolist()), original(*args))
    assert not optimizer._step_supports_amp_scaling
    scaler = GradScaler("cpu", init_scale=8.0)
    for factor in (1.0, torch.inf):
        scaler.scale(factor * param.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        param.grad = None
    assert seen == [[1.0, 1.0, 1.0]]
    optimizer.step = original
    assert optimizer._step_supports_amp_scaling
    del optimizer.step
    optimizer.step = optimizer.step  # bound, as Accelerate leaves it behind
    assert optimizer._step_supports_amp_scaling


class Calling(Tensor):
    """A class whose code torch's step calls."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout contract")
@pytest.mark.parametrize("kind", ["columns", "torch's own", "a subclass", "pieces"])
def test_a_users_buffer_of_gradients_stays_theirs(kind: str) -> None:
    """Gradients are unscaled where they are, as torch's GradScaler does it."""
    results = []
    for module in (torch.optim, fusedopt):
        first = torch.ones(2)
        if kind == "a subclass":
            first = first.as_subclass(Calling)
        params = [first.requires_grad_(), Parameter(torch.tensor([1.0, 2.0]))]
        buffer = torch.zeros(4)
        columns = buffer.view(2, 2).unbind(1)
        pieces = columns if kind == "columns" else buffer.split(2)
        for param, piece in zip(params, pieces, strict=True):
            param.grad = piece
        fused = {"fused": False} if kind == "torch's own" else {}
        groups = [{"params": params[:1], **fused}, {"params": params[1:]}]
        optimizer = module.SGD(groups, lr=0.1)
        scaler = GradScaler("cpu", init_scale=8.0)
        for _ in range(3):
            buffer.zero_()
            plain = [p.as_subclass(Tensor) for p in params]
            loss = (plain[0] ** 2).sum() + (plain[1] ** 3).sum()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        for param, piece in zip(params, pieces, strict=True):
            assert param.grad.data_ptr() == piece.data_ptr()
        results.append([*(p.detach().as_subclass(Tensor) for p in params), buffer])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


def test_a_gradient_that_torchs_part_shares_with_the_kernels() -> None:
    """It is unscaled once for each."""
    results = []
    for shared in (True, False):
        params = make_params([(4,), (4,)])
        grad = random((4,), 0) * 4
        params[0].grad = grad
        params[1].grad = grad if shared else grad.clone()
        optimizer = fusedopt.SGD(
            [{"params": params[:1], "fused": False}, {"params": params[1:]}], lr=0.1
        )
        scaled_step(optimizer, 4.0)
        results.append([p.detach() for p in params] + [p.grad for p in params])
    torch.testing.assert_close(*results)


def test_gradients_are_scaled_again_if_torchs_part_raises() -> None:
    class Failing(Tensor):
        def add_(self, *args: Any, **kwargs: Any) -> Any:
            raise ValueError

    param = torch.ones(3).as_subclass(Failing).requires_grad_()
    param.grad = torch.full((3,), 0.3)
    before = param.grad.clone()
    optimizer = fusedopt.SGD([param], lr=0.1)
    with pytest.raises(ValueError):  # noqa: PT011
        scaled_step(optimizer, 3.0)
    assert torch.equal(param.grad, before)
    assert not hasattr(optimizer, "grad_scale")  # or the next step, without a scaler, would use it


@pytest.mark.parametrize("name", ["unscale_", "_unscale_grads_"])
def test_a_scaler_that_unscales_in_its_own_way(name: str) -> None:
    """As FSDP's ShardedGradScaler, which tells all ranks of an overflow on one."""
    results = []
    for module in (torch.optim, fusedopt):
        calls: list[int] = []

        def own(self: GradScaler, *args: Any, calls: list[int] = calls) -> Any:
            calls.append(1)
            return getattr(GradScaler, name)(self, *args)

        scaler = type("Own", (GradScaler,), {name: own})("cpu", init_scale=4.0)
        (param,) = make_params([(3,)])
        optimizer = module.SGD([param], lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale((param**2).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append((param.tolist(), len(calls)))
    assert results[0] == (pytest.approx(results[1][0], rel=1e-14), results[1][1])


@pytest.mark.parametrize("kind", ["columns", "blocks of columns", "columns that meet", "diagonals"])
def test_gradients_that_interleave(kind: str) -> None:
    """Those that share no element stay where they are; all are unscaled once for each."""
    buffer = random((6, 4), 0)
    grads = {
        "columns": [*buffer.unbind(1)],
        "blocks of columns": [buffer.view(2, 3, 4)[:, :, i] for i in range(4)],
        "columns that meet": [buffer[:, :3], buffer[:, 2:]],
        "diagonals": [buffer.as_strided((4, 2), (5, 2)), buffer.as_strided((4, 2), (5, 2), 1)],
    }[kind]
    params = [Parameter(torch.zeros_like(grad).contiguous()) for grad in grads]
    expected = [grad.clone() for grad in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer = fusedopt.SGD(params, lr=1.0)
    scaled_step(optimizer, 4.0)
    for param, grad in zip(params, expected, strict=True):
        torch.testing.assert_close(param.detach(), -grad / 4)
    if kind in ("columns", "blocks of columns"):
        assert [p.grad.data_ptr() for p in params] == [g.data_ptr() for g in grads]


def test_a_closure_under_a_scaler_makes_gradients_of_its_own() -> None:
    results = []
    for module in (torch.optim, fusedopt):
        param = Parameter(torch.ones(2))
        optimizer = module.SGD([param], lr=0.1)
        scaler = GradScaler("cpu", init_scale=16.0)

        def closure(optimizer: Optimizer = optimizer, param: Tensor = param) -> Tensor:
            optimizer.zero_grad()
            loss = (param**2).sum()
            loss.backward()
            return loss

        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale((param**2).sum()).backward()
            scaler.step(optimizer, closure)
            scaler.update()
        results.append(param.detach())
    torch.testing.assert_close(*results)


def test_a_step_that_raises_leaves_no_scale_behind() -> None:
    results = []
    for module in (torch.optim, fusedopt):
        param = Parameter(torch.ones(2))
        optimizer = module.SGD([param], lr=0.1)
        scaler = GradScaler("cpu", init_scale=4.0)
        scaler.scale(param.sum()).backward()
        optimizer.param_groups[0]["lr"] = "x"
        with pytest.raises(TypeError):
            scaler.step(optimizer)
        optimizer.param_groups[0]["lr"] = 0.1
        param.grad = torch.ones(2)
        optimizer.step()
        results.append(param.detach())
    torch.testing.assert_close(*results)
