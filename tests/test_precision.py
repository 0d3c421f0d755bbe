"""Numbers stored otherwise than torch stores them: by noise, in another dtype, in two halves."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CLASS_CASES, LAYOUTS, MAIN_CASES, OPTIMIZERS, Case, Layout, over, takes
from device import Device, device  # noqa: F401  (a fixture)
from helpers import assert_identical, contents, kernels, random
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt

SHAPES = ((7, 19), (300,), (), (0,), (2, 1000))
ROUNDED = {"stochastic_rounding": True}
HALVES = {"master_weights": True, "state_dtype": torch.float32}
MODES: dict[str, dict[str, Any]] = {
    "rounded": ROUNDED,
    "float32_state": {"state_dtype": torch.float32},
    "float32_state_rounded": {"state_dtype": torch.float32, **ROUNDED},
    "halves": HALVES,
    "halves_rounded": {"master_weights": True, **ROUNDED},
}
NAMES = tuple(OPTIMIZERS)


@pytest.fixture(params=MODES, name="mode")
def _mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    return MODES[request.param]


def make_params(dtype: torch.dtype = torch.bfloat16, shapes: Any = SHAPES) -> list[Parameter]:
    """The same values in all dtypes that hold bfloat16."""
    return [Parameter(random(shape, i).bfloat16().to(dtype)) for i, shape in enumerate(shapes)]


def set_grads(optimizer: Optimizer, seed: int) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for i, p in enumerate(params):
        p.grad = random(p.shape, 100 * seed + i).bfloat16().to(p.device, p.dtype)


def run(optimizer: Optimizer, steps: int = 3, first: int = 0) -> Optimizer:
    for t in range(first, first + steps):
        set_grads(optimizer, t)
        optimizer.step()
    return optimizer


def values(optimizer: Optimizer) -> list[Any]:
    """Parameters and states."""
    return [
        [p.detach().cpu(), {k: v.cpu() for k, v in optimizer.state.get(p, {}).items()}]
        for group in optimizer.param_groups
        for p in group["params"]
    ]


def whole(param: Tensor, remainder: Tensor) -> Tensor:
    """The float32 of which these are the halves."""
    return ((param.detach().view(torch.int16).int() << 16) + remainder.int()).view(torch.float32)


@over(MAIN_CASES, "case")
def test_master_weights_are_a_float32_run(case: Case) -> None:
    """Bit for bit: the halves together, and the parameters its upper halves, rounded."""
    plain = run(case.make(make_params(torch.float32)), 20)
    halves = run(case.make(make_params(), **HALVES), 20)
    assert kernels(halves) == {case.name.lower()}
    for p, f in zip(*(o.param_groups[0]["params"] for o in (halves, plain)), strict=True):
        state = halves.state[p]
        assert torch.equal(
            whole(p, state["param_remainder"]).view(torch.int32), f.view(torch.int32)
        )
        bits = f.detach().view(torch.int32) + 0x8000 >> 16
        assert torch.equal(p.detach().view(torch.int16), bits.to(torch.int16))
        for key in _C_STATES[case.name]:
            if key in plain.state[f]:
                assert_identical(state[key], plain.state[f][key])


_C_STATES = {name: of["states"] for name, of in OPTIMIZERS.items()}


@over(MAIN_CASES, "case")
def test_state_of_another_dtype(case: Case) -> None:
    """As the same step in float32, of whose result the state is rounded."""
    lr = 2.0**-5  # which state may begin with
    ours = run(case.make(make_params(torch.float32), lr=lr, state_dtype=torch.bfloat16), 1)
    plain = run(case.make(make_params(torch.float32), lr=lr), 1)
    for p, f in zip(*(o.param_groups[0]["params"] for o in (ours, plain)), strict=True):
        assert torch.equal(p, f)
        for key in _C_STATES[case.name]:
            if key in plain.state[f]:
                assert ours.state[p][key].dtype == torch.bfloat16
                assert torch.equal(ours.state[p][key], plain.state[f][key].bfloat16())
    ours = run(case.make(make_params(), state_dtype=torch.float32), 3)
    for p in ours.param_groups[0]["params"]:
        assert p.dtype == torch.bfloat16
        kept = [v for k, v in ours.state[p].items() if k in _C_STATES[case.name]]
        assert all(v.dtype == torch.float32 for v in kept)
    ours = run(case.make(make_params(torch.float16), state_dtype=torch.float32), 1)
    assert kernels(ours) == {case.name.lower()}


@over(MAIN_CASES, "case")
def test_rounded_to_neighbours(case: Case) -> None:
    """What is stored is one of the two bfloat16 next to what a float32 run stores."""
    ours = run(case.make(make_params(), **ROUNDED), 1)
    plain = run(case.make(make_params(torch.float32)), 1)
    differ = 0
    for p, f in zip(*(o.param_groups[0]["params"] for o in (ours, plain)), strict=True):
        pairs = [(p.detach(), f.detach())]
        pairs += [(ours.state[p][k], plain.state[f][k]) for k in _C_STATES[case.name]
                  if k in plain.state[f]]  # fmt: skip
        for stored, exact in pairs:
            assert stored.dtype == torch.bfloat16
            cut = (exact.view(torch.int32) & ~0xFFFF).view(torch.float32)
            up = ((exact.view(torch.int32) & ~0xFFFF) + 0x10000).view(torch.float32)
            is_exact = exact == cut
            found = stored.float()
            assert torch.all((found == cut) | (found == up) & ~is_exact)
            differ += int((found != exact.bfloat16().float()).sum())
    assert differ > 0


def test_rounding_is_unbiased() -> None:
    """A hundredth of an ulp, 200 times: two ulps, where rounding to nearest gains nothing."""
    n, steps = 20000, 200
    for rounded, expected in ((False, 0.0), (True, 2.0)):
        p = Parameter(torch.ones(n, dtype=torch.bfloat16))
        optimizer = fusedopt.SGD([p], lr=1.0, stochastic_rounding=rounded)
        for _ in range(steps):
            p.grad = torch.full((n,), -(2.0**-7) / 100, dtype=torch.bfloat16)
            optimizer.step()
        update = -float(p.grad.float()[0]) * steps
        gained = (p.detach().double() - 1).mean().item() / 2.0**-7
        assert abs(gained - expected * update / (2 * 2.0**-7)) < 0.06  # 5 standard deviations


def test_the_seed_and_the_step_and_the_place_decide() -> None:
    def stored(seed: int = 0, **kwargs: Any) -> list[Tensor]:
        optimizer = run(fusedopt.AdamW(make_params(), seed=seed, **ROUNDED, **kwargs), 2)
        return [p.detach() for p in optimizer.param_groups[0]["params"]]

    assert_identical(stored(), stored())
    assert_identical(stored(), stored(seed=2**64))  # of which the noise takes 64 bits
    assert any(not torch.equal(a, b) for a, b in zip(stored(), stored(seed=1), strict=True))
    unseeded = fusedopt.AdamW(make_params(), **ROUNDED)
    unseeded.param_groups[0]["seed"] = None
    assert_identical([p.detach() for p in run(unseeded, 2).param_groups[0]["params"]], stored())
    # Two equal parameters with equal gradients have noise of their own.
    params = [Parameter(torch.ones(500, dtype=torch.bfloat16)) for _ in range(2)]
    optimizer = fusedopt.SGD(params, lr=1e-3, **ROUNDED)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert not torch.equal(*params)
    first = params[0].detach().clone()
    with torch.no_grad():
        params[0].fill_(1)
    optimizer.step()
    assert not torch.equal(params[0], first)


@over(LAYOUTS, "layout")
@over(CLASS_CASES, "case")
def test_same_bits_in_any_layout(case: Case, layout: Layout, mode: dict[str, Any]) -> None:
    """The gradient's layout, and memory between the elements, decide nothing."""
    shape = layout.shape
    found = []
    for laid_out in (False, True):
        start = layout.param(random(shape, 1).bfloat16())
        if not laid_out:
            start = start.clone()  # dense, in the same order in memory
        p = Parameter(start)
        optimizer = case.make([p], **mode)
        for t in range(3):
            grad = layout.grad(random(shape, 5 + t).bfloat16())
            p.grad = grad if laid_out else torch.empty_like(p).copy_(grad)
            optimizer.step()
        assert kernels(optimizer) == {case.name.lower()}
        found.append([p.detach().clone(), {k: v.clone() for k, v in optimizer.state[p].items()}])
    assert torch.equal(found[0][0], found[1][0])
    for key, value in found[0][1].items():
        assert torch.equal(value, found[1][1][key]), key


@over(MAIN_CASES, "case")
def test_same_bits_split_into_groups(case: Case, mode: dict[str, Any]) -> None:
    together = run(case.make(make_params(), **mode))
    params = make_params()
    apart = run(case.make([{"params": [p]} for p in params], **mode))
    assert_identical(values(apart), values(together))


@over(MAIN_CASES, "case")
def test_same_bits_on_a_device(case: Case, mode: dict[str, Any], device: Device) -> None:  # noqa: F811
    """Also where the count that the noise depends on is there."""
    expected = values(run(case.make(make_params(), **mode)))
    options = [{}]
    if takes(fusedopt, case.name, "capturable"):
        options.append({"capturable": True})
    for option in options:
        params = [Parameter(p.detach().to(device.name)) for p in make_params()]
        optimizer = run(case.make(params, **mode, **option))
        assert kernels(optimizer) == {case.name.lower()}
        assert_identical(values(optimizer), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_has_the_same_bits(name: str, mode: dict[str, Any]) -> None:
    make = getattr(fusedopt, name)
    straight = run(make(make_params(), lr=0.01, seed=5, **mode), 6)
    before = run(make(make_params(), lr=0.01, seed=5, **mode), 3)
    saved = io.BytesIO()
    torch.save([[p.detach() for p in before.param_groups[0]["params"]], before.state_dict()], saved)
    saved.seek(0)
    params, state_dict = torch.load(saved, weights_only=True)
    after = make([Parameter(p) for p in params], lr=0.01, **mode)
    after.load_state_dict(state_dict)
    assert_identical(values(run(after, 3, first=3)), values(straight))


@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on(how: Callable[[Any], Any], mode: dict[str, Any]) -> None:
    optimizer = run(fusedopt.AdamW(make_params(), **mode))
    other = how(optimizer)
    assert_identical(values(run(other, 2, first=3)), values(run(optimizer, 2, first=3)))


@pytest.mark.parametrize("name", NAMES)
def test_each_mode_loads_the_others(name: str) -> None:
    """And torch.optim's, both ways: converted, and nothing is lost that the target can hold."""
    modes: dict[str, dict[str, Any]] = {**MODES, "plain": {}}
    make = getattr(fusedopt, name)
    for kind, mode in modes.items():
        saved = run(make(make_params(), lr=0.01, **mode)).state_dict()
        for other_kind, other in modes.items():
            target = make(make_params(), lr=0.01, **other)
            target.load_state_dict(copy.deepcopy(saved))
            for own, group in zip(target.param_groups, saved["param_groups"], strict=True):
                assert {k: own.get(k) for k in ("state_dtype", "master_weights")} == {
                    k: other.get(k, own.get(k)) for k in ("state_dtype", "master_weights")
                }
                for param, number in zip(own["params"], group["params"], strict=True):
                    before, state = saved["state"].get(number, {}), target.state.get(param, {})
                    for key, value in before.items():
                        if key == "param_remainder":
                            assert (key in state) == bool(other.get("master_weights"))
                        if key not in state:
                            continue
                        wanted = value.dtype
                        if key in _C_STATES[name]:
                            wanted = other.get("state_dtype") or torch.bfloat16
                        assert state[key].dtype == wanted, (kind, other_kind, key)
                        assert torch.equal(state[key], value.to(wanted))
            run(target, 2, first=3)
            assert kernels(target) == {name.lower()}
        if hasattr(torch.optim, name):
            torchs = getattr(torch.optim, name)(make_params(), lr=0.01)
            torchs.load_state_dict(copy.deepcopy(saved))
            run(torchs, 1)
            back = make(make_params(), lr=0.01, **mode)
            back.load_state_dict(torchs.state_dict())
            run(back, 1)
            assert kernels(back) == {name.lower()}


def test_written_parameters() -> None:
    """What a user writes over a parameter counts, up to the remainder; no NaN comes of it."""
    p = make_params(shapes=((1000,),))[0]
    optimizer = run(fusedopt.SGD([p], lr=0.1, master_weights=True), 3)
    for value in (0.0, -0.0, 1.0, 1e30):
        with torch.no_grad():
            p.fill_(value)
        p.grad = torch.zeros_like(p)
        optimizer.step()
        assert torch.all((p - value).abs() <= abs(value) / 128)


def test_special_numbers() -> None:
    """Infinities, NaNs and what is beyond the largest bfloat16 are stored as without noise."""
    numbers = [
        float("inf"),
        -float("inf"),
        float("nan"),
        3.38953e38,
        3.3961e38,
        -3.3895e38,
        0.0,
        -0.0,
    ]
    start = torch.tensor(numbers, dtype=torch.float64).repeat(50)
    found = []
    for mode in ({}, ROUNDED):
        p = Parameter(torch.zeros(start.shape, dtype=torch.bfloat16))
        optimizer = fusedopt.SGD([p], lr=1.0, maximize=True, **mode)
        p.grad_dtype = None
        p.grad = start.float()
        optimizer.step()
        found.append(p.detach())
    finite = found[0].isfinite()
    assert_identical(*(f.nan_to_num(7.0)[~finite] for f in found))
    assert torch.all(found[1][finite].isfinite())


def test_out_of_place_changes_count_versions() -> None:
    p = make_params(shapes=((3, 4),))[0]
    optimizer = run(fusedopt.SGD([p], lr=0.1, **ROUNDED, **HALVES))
    written = [p, *optimizer.state[p].values()]
    versions = [t._version for t in written]
    run(optimizer, 1)
    assert [t._version for t in written] == [v + 1 for v in versions]
    assert contents(optimizer)
