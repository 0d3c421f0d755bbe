"""`max_grad_norm`: a step that clips as `clip_grad_norm_` before it, and writes no gradient."""

from __future__ import annotations

import copy
import math
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from cases import CLASS_CASES, DTYPES, LAYOUTS, MAIN_CASES, Case, Layout, case, over, with_torch
from helpers import (
    all_params,
    assert_identical,
    assert_same,
    contents,
    kernels,
    make_params,
    random,
    set_grads,
)
from torch import Tensor
from torch.nn import Parameter

import fusedopt

ADAMW = case("AdamW-all")
SGD = case("SGD-all")


def values_of(params: list[Parameter]) -> list[Tensor]:
    return [param.detach().clone() for param in params]


def give_clipped(params: list[Parameter], grads: list[Tensor], norm: Tensor, limit: float) -> None:
    """Gives 16-bit parameters gradients in float32, scaled as by clip_grad_norm_."""
    factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
    for param, grad in zip(params, grads, strict=True):
        param.grad_dtype = None  # any
        param.grad = grad.float() * factor


@over(DTYPES, "dtype")
@over(MAIN_CASES, "case")
def test_as_clipping_before(case: Case, dtype: torch.dtype) -> None:
    """The same bits; those of 16-bit gradients, as if the products were kept in float32."""
    params, twins = make_params(dtype=dtype), make_params(dtype=dtype)
    ours, expected = case.make(params, max_grad_norm=0.5), case.make(twins)
    assert ours.grad_norm is None
    for t in range(3):
        set_grads(params, t)
        set_grads(twins, t)
        before = [param.grad.clone() for param in params]  # type: ignore[union-attr]
        norm = fusedopt.clip_grad_norm_(twins, 0.5)
        if dtype.itemsize == 2:
            give_clipped(twins, before, norm, 0.5)
        ours.step()
        expected.step()
        assert_identical([param.grad for param in params], before)
        assert_identical(ours.grad_norm, norm)
    assert_identical(values_of(params), values_of(twins))


@over(LAYOUTS, "layout")
@over(CLASS_CASES, "case")
def test_layouts(case: Case, layout: Layout) -> None:
    def run(**options: Any) -> tuple[list[Parameter], Any]:
        param = Parameter(layout.param(random(layout.shape, 1, torch.float32)))
        param.grad = layout.grad(random(layout.shape, 2, torch.float32) * 3)
        optimizer = case.make([param], **options)
        if not options:
            norm = fusedopt.get_total_norm([param.grad])
            factor = torch.clamp(1.0 / (norm + 1e-6), max=1.0)
            param.grad = layout.grad((param.grad * factor).contiguous())
        optimizer.step()
        return [param], optimizer

    ours, optimizer = run(max_grad_norm=1.0)
    expected, _ = run()
    assert_identical(values_of(ours), values_of(expected))
    assert kernels(optimizer) == {case.name.lower()}


@over(with_torch(CLASS_CASES), "case")
def test_torchs_step_is_clipped_too(case: Case) -> None:
    """By itself (fused=False), and beside the kernels, where one parameter is complex or sparse."""
    for options in ({"fused": False}, {}):
        pairs = []
        for limit in ({"max_grad_norm": 0.5}, {}):
            params: list[Any] = make_params(dtype=torch.float32)
            if not options:
                params[1] = Parameter(random((13,), 5, torch.float32).to(torch.complex64))
            optimizer = case.make(params, **options, **limit)
            pairs.append((params, optimizer))
        (params, ours), (twins, expected) = pairs
        for t in range(3):
            for every in (params, twins):
                for i, param in enumerate(every):
                    param.grad = random(param.shape, 31 * t + i).to(param.dtype)
            before = [param.grad.clone() for param in params]
            torch.nn.utils.clip_grad_norm_(twins, 0.5)
            ours.step()
            expected.step()
            assert_identical([param.grad for param in params], before)
        for p, q in zip(params, twins, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        assert "torch" in kernels(ours)


def test_the_norm_is_of_all_groups() -> None:
    """In their order, whatever options they have; parameters without a gradient count nothing."""
    params, twins = make_params(dtype=torch.float32), make_params(dtype=torch.float32)

    def groups(of: list[Parameter]) -> list[dict[str, Any]]:
        return [
            {"params": of[:1], "lr": 0.1},
            {"params": of[1:3], "maximize": True},
            {"params": of[3:]},
        ]

    ours = fusedopt.AdamW(groups(params), max_grad_norm=0.1)
    expected = fusedopt.AdamW(groups(twins))
    for every in (params, twins):
        set_grads(every, 0)
        every[2].grad = None
    norm = fusedopt.clip_grad_norm_(twins, 0.1)
    ours.step()
    expected.step()
    assert_identical(ours.grad_norm, norm)
    assert_identical(values_of(params), values_of(twins))


@pytest.mark.parametrize("scale", [4.0, 1024.0])
@over(CLASS_CASES, "case")
def test_with_a_scale(case: Case, scale: float) -> None:
    """What a GradScaler hands over; gradients are left unscaled, and not clipped."""
    params, twins = make_params(dtype=torch.float32), make_params(dtype=torch.float32)
    ours, expected = case.make(params, max_grad_norm=0.5), case.make(twins)
    for t in range(2):
        set_grads(params, t)
        set_grads(twins, t)
        before = [param.grad.clone() for param in params]  # type: ignore[union-attr]
        norm = fusedopt.clip_grad_norm_(twins, 0.5)
        for param in params:
            param.grad *= scale
        ours.grad_scale, ours.found_inf = torch.tensor(scale), torch.tensor(0.0)
        ours.step()
        del ours.grad_scale, ours.found_inf
        expected.step()
        assert_identical(ours.grad_norm, norm)
        assert_identical([param.grad for param in params], before)
    assert_identical(values_of(params), values_of(twins))


def test_with_a_grad_scaler() -> None:
    """As unscale_, clip_grad_norm_ and step with torch's; an overflow skips the step."""
    results = []
    for ours in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
        optimizer: Any = (
            fusedopt.AdamW(model.parameters(), max_grad_norm=0.1)
            if ours
            else torch.optim.AdamW(model.parameters(), fused=False)
        )
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        for t in range(4):
            optimizer.zero_grad()
            loss = model(random((3, 4), t, torch.float32)).square().mean()
            scaler.scale(loss * (math.inf if t == 2 else 1)).backward()
            if not ours:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
        results.append([p.detach() for p in model.parameters()])
        assert scaler.get_scale() == 128.0
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_nonfinite_gradients(value: float) -> None:
    """As clip_grad_norm_ makes of them: 0 or NaN where they were finite."""
    params, twins = make_params(dtype=torch.float32), make_params(dtype=torch.float32)
    ours, expected = SGD.make(params, max_grad_norm=1.0), SGD.make(twins)
    for every in (params, twins):
        set_grads(every, 0)
        every[0].grad[0, 0] = value  # type: ignore[index]
    torch.nn.utils.clip_grad_norm_(twins, 1.0)
    ours.step()
    expected.step()
    assert not math.isfinite(float(ours.grad_norm))
    assert_identical(values_of(params), values_of(twins))


def test_without_gradients() -> None:
    optimizer = fusedopt.AdamW(make_params(), max_grad_norm=1.0)
    before = contents(optimizer)
    optimizer.step()
    assert_identical(contents(optimizer), before)
    assert float(optimizer.grad_norm) == 0


@over(CLASS_CASES, "case")
def test_it_is_no_option_of_torchs(case: Case) -> None:
    """It stays out of groups and state dicts, goes with copies, and is changed as an attribute."""
    ours, plain = case.make(make_params(), max_grad_norm=2), case.make(make_params())
    assert ours.max_grad_norm == 2.0 and plain.max_grad_norm is None
    assert_identical(ours.state_dict(), plain.state_dict())
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert copied.max_grad_norm == 2.0 and copied.grad_norm is None
    ours.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert ours.max_grad_norm == 2.0
    ours.max_grad_norm = None
    set_grads(all_params(ours), 0)
    set_grads(all_params(plain), 0)
    ours.step()
    plain.step()
    assert ours.grad_norm is None
    assert_same(ours, plain)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (-1.0, ValueError),
        (math.nan, ValueError),
        ("1", TypeError),
        (True, TypeError),
        ([1], TypeError),
    ],
)
def test_bad_limits(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="max_grad_norm|float"):
        fusedopt.AdamW(make_params(), max_grad_norm=value)
    optimizer = fusedopt.AdamW(make_params())
    set_grads(all_params(optimizer), 0)
    before = contents(optimizer)
    if error is TypeError and value is not True and value != "1":
        optimizer.max_grad_norm = value
        with pytest.raises(TypeError, match="max_grad_norm"):
            optimizer.step()
        assert_identical(contents(optimizer), before)


@over((0.0, math.inf), "limit")
def test_extreme_limits(limit: float) -> None:
    params, twins = make_params(), make_params()
    ours, expected = SGD.make(params, max_grad_norm=limit), SGD.make(twins)
    set_grads(params, 0)
    set_grads(twins, 0)
    torch.nn.utils.clip_grad_norm_(twins, limit)
    ours.step()
    expected.step()
    assert_identical(values_of(params), values_of(twins))


def test_a_failing_step_notes_no_norm() -> None:
    params = make_params()
    optimizer = ADAMW.make(params, max_grad_norm=1.0)
    set_grads(params, 0)
    optimizer.step()
    norm = optimizer.grad_norm
    set_grads(params, 1)
    optimizer.param_groups[0]["lr"] = "much"
    with pytest.raises(TypeError):
        optimizer.step()
    assert optimizer.grad_norm is norm


def test_iterators_are_refused_and_not_exhausted() -> None:
    for whole in (False, True):
        param = Parameter(torch.ones(3))
        optimizer = fusedopt.SGD([param], lr=0.1, max_grad_norm=1.0)
        param.grad = torch.ones(3)
        if whole:
            optimizer.param_groups = iter(optimizer.param_groups)  # type: ignore[assignment]
        else:
            optimizer.param_groups[0]["params"] = iter([param])
        with pytest.raises(TypeError, match="max_grad_norm"):
            optimizer.step()
        optimizer.max_grad_norm = None
        optimizer.step()
        assert_identical(param.detach(), torch.full((3,), 0.9))


def test_where_no_number_can_be_asked_for() -> None:
    """On meta tensors and under modes, torch's step runs with a factor that stays a tensor."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    def run(where: str = "cpu") -> Parameter:
        param = Parameter(torch.ones(3, device=where))
        param.grad = torch.full((3,), 4.0, device=where)
        optimizer = fusedopt.SGD([param], lr=0.1, max_grad_norm=1.0)
        optimizer.step()
        return param

    assert run("meta").shape == (3,)
    with FakeTensorMode():
        run()

    def traced(ours: bool, start: Tensor, grad: Tensor) -> Tensor:
        param = Parameter(start.clone(), requires_grad=False)
        param.grad = grad
        if ours:
            fusedopt.SGD([param], lr=0.1, max_grad_norm=1.0).step()
        else:
            torch.nn.utils.clip_grad_norm_([param], 1.0)
            torch.optim.SGD([param], lr=0.1).step()
        return param.detach().clone()

    results = []
    for ours in (True, False):
        ones, grad = torch.ones(3), torch.full((3,), 4.0)
        graph = make_fx(partial(traced, ours))(ones, grad.clone())
        results.append(graph(ones, grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("first", ["cpu", "meta"])
def test_a_factor_that_the_kernels_cant_know(first: str) -> None:
    """The norm is where the first gradient is; without its value nobody is stepped unclipped."""
    params = [Parameter(torch.ones(3)), Parameter(torch.ones(3, device="meta"))]
    for param in params:
        param.grad = torch.full_like(param, 4.0)
    every = params if first == "cpu" else params[::-1]
    optimizer = fusedopt.SGD(every, lr=0.1, max_grad_norm=1.0)
    with pytest.raises(RuntimeError, match="meta tensor"):
        optimizer.step()
    assert_identical(params[0].detach(), torch.ones(3))
    assert optimizer.grad_norm is None


def test_a_gradient_that_torchs_step_broadcasts_or_converts() -> None:
    """It is clipped where it is, so that no assignment can refuse it, and is as it was after."""
    for change in (lambda p: p.data.half(), lambda p: torch.ones(2, 3)):
        param = Parameter(torch.ones(3))
        param.grad = torch.full((3,), 4.0)
        grad = param.grad
        param.data = change(param)
        optimizer = fusedopt.SGD([param], lr=0.1, max_grad_norm=1.0, fused=False)
        optimizer.step()
        assert param.grad is grad
        assert_identical(grad, torch.full((3,), 4.0))
        assert float(param.detach().float().mean()) < 1


def test_a_gradient_that_is_an_inference_tensor() -> None:
    """Which torch writes and then refuses: nothing is left of that."""
    for fused in (None, False):
        with torch.inference_mode():
            grad = torch.full((3,), 4.0)
        param = Parameter(torch.ones(3))
        param.grad = grad
        fusedopt.SGD([param], lr=0.1, max_grad_norm=1.0, fused=fused).step()
        torch.testing.assert_close(param.detach(), torch.full((3,), 1 - 0.1 / math.sqrt(3)))
        assert_identical(param.grad.clone(), torch.full((3,), 4.0))


def test_names_of_a_subclasss_own() -> None:
    class Own(fusedopt.SGD):
        @property
        def grad_norm(self) -> str:  # type: ignore[override]
            return "mine"

    class Method(fusedopt.SGD):
        def max_grad_norm(self) -> None:  # type: ignore[override]
            raise AssertionError

    for fused in (None, False):
        params = make_params()
        optimizer = Own(params, lr=0.1, fused=fused, max_grad_norm=1.0)
        set_grads(params, 0)
        optimizer.step()
        assert optimizer.grad_norm == "mine"
        params = make_params()
        plain = Method(params, lr=0.1, fused=fused)
        set_grads(params, 0)
        plain.step()


def test_a_failing_step_of_both_notes_no_norm() -> None:
    """Neither where torch's code takes a part."""
    params: list[Any] = [*make_params(), Parameter(torch.ones(2, dtype=torch.complex64))]
    optimizer = fusedopt.Adam(params, max_grad_norm=1.0)

    def give(seed: int) -> None:
        set_grads(params[:-1], seed)
        params[-1].grad = torch.full((2,), 1 + 2j)

    give(0)
    optimizer.step()
    norm = optimizer.grad_norm
    assert norm is not None
    give(1)
    optimizer.state[params[0]]["exp_avg"] = torch.zeros(3)
    with pytest.raises(RuntimeError):
        optimizer.step()
    assert optimizer.grad_norm is norm


def test_noise_and_master_weights() -> None:
    """The same bits as with gradients in float32 that were clipped."""
    for mode in (
        {"stochastic_rounding": True},
        {"master_weights": True},
        {"master_weights": True, "stochastic_rounding": True},
    ):
        params = make_params(dtype=torch.bfloat16)
        twins = make_params(dtype=torch.bfloat16)
        ours = fusedopt.AdamW(params, max_grad_norm=0.3, **mode)
        expected = fusedopt.AdamW(twins, **mode)
        for t in range(3):
            set_grads(params, t)
            grads = [param.grad for param in params]
            give_clipped(twins, grads, fusedopt.get_total_norm(grads), 0.3)
            ours.step()
            expected.step()
        assert_identical(values_of(params), values_of(twins))


def test_one_large_tensor_and_threads() -> None:
    """Long sweeps share the work; the norm and the parameters are the same for any number."""
    results = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            param = Parameter(random((700_001,), 0, torch.float32))
            param.grad = random((700_001,), 1, torch.float32)
            optimizer = fusedopt.AdamW([param], max_grad_norm=1.0)
            optimizer.step()
            results.append([param.detach(), optimizer.grad_norm])
        finally:
            torch.set_num_threads(before)
    assert_identical(results[0], results[1])
