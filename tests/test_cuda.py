"""Parameters on a device: the CPU's bits, what stays on the device, graphs, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from cases import CASES, DTYPES, MAIN_CASES, OPTIMIZERS, Case, over, takes
from device import Device, StandIn, device  # noqa: F401  (a fixture)
from helpers import SHAPES, assert_identical, assert_unchanged, contents, kernels, random
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt

COUNTING = [name for name, of in OPTIMIZERS.items() if of["counts_steps"]]
TINY = ((3,), (2, 2))


def on_cpu(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: on_cpu(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(map(on_cpu, value))
    return value.cpu() if torch.is_tensor(value) else value


def found_in(optimizer: Optimizer) -> list[Any]:
    return [on_cpu(value) for value in contents(optimizer)]


def make_params(where: str, dtype: torch.dtype = torch.float32, shapes: Any = TINY) -> Any:
    return [Parameter(random(shape, i, dtype).to(where)) for i, shape in enumerate(shapes)]


def set_grads(optimizer: Optimizer, seed: int) -> None:
    """The same gradients on every device."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for i, p in enumerate(params):
        p.grad = random(p.shape, 100 * seed + i, p.dtype).to(p.device)


def run(optimizer: Optimizer, steps: int = 3, first: int = 0) -> list[Any]:
    for t in range(first, first + steps):
        set_grads(optimizer, t)
        optimizer.step()
    return found_in(optimizer)


def numbers_on(where: str, case: Case) -> dict[str, Any]:
    """The case's numbers as tensors there, in several dtypes; float32 holds them exactly."""

    def place(value: Any, dtype: torch.dtype = torch.float32) -> Any:
        if isinstance(value, tuple):
            return tuple(place(v, torch.float64) for v in value)
        return torch.tensor(float(value)).to(where, dtype)

    numbers = ("lr", "betas", "eps", "weight_decay", "alpha", "rho", "lr_decay", "momentum")
    return {k: place(v) for k, v in case.kwargs.items() if k in numbers}


@over(DTYPES, "dtype")
@over(CASES, "case")
def test_same_bits_as_on_the_cpu(case: Case, dtype: torch.dtype, device: Device) -> None:  # noqa: F811
    found = []
    for where in ("cpu", device.name):
        shapes = [*SHAPES, (2003,), (0,), (8, 3, 5, 5)]
        params = make_params(where, dtype, shapes)
        last = params[-1].detach().contiguous(memory_format=torch.channels_last)
        params[-1] = Parameter(last)
        optimizer = case.make(params)
        for t in range(4):
            for i, p in enumerate(params[t % 2 :]):
                p.grad = random(p.shape, 100 * t + i, dtype).to(where)
            optimizer.step()
        assert kernels(optimizer) == {case.name.lower()}
        found.append(found_in(optimizer))
    assert_identical(found[1], found[0], device.name)


@over(DTYPES, "grad_dtype")
@over(MAIN_CASES, "case")
def test_gradient_of_another_dtype(
    case: Case,
    grad_dtype: torch.dtype,
    device: Device,  # noqa: F811
) -> None:
    """The CPU's bits; float64 with another dtype is torch's on a device."""
    found = []
    for where in ("cpu", device.name):
        optimizer = case.make(make_params(where, torch.bfloat16, [*SHAPES, (2003,)]))
        for t in range(3):
            for i, p in enumerate(optimizer.param_groups[0]["params"]):
                p.grad_dtype = None
                p.grad = random(p.shape, 100 * t + i, grad_dtype).to(where)
            if grad_dtype == torch.float64 and where != "cpu":
                rows = fusedopt.explain(optimizer).rows
                assert all("float64" in row.reason for row in rows)
                return
            optimizer.step()
        assert kernels(optimizer) == {case.name.lower()}
        found.append(found_in(optimizer))
    assert_identical(*found)


@pytest.mark.parametrize("option", ["capturable", "fused"])
@over(MAIN_CASES, "case")
def test_step_counts_on_the_device(case: Case, option: str, device: Device) -> None:  # noqa: F811
    """As torch's with these options; made there, counted there, never asked for."""
    expected = run(case.make(make_params("cpu")))
    if not takes(fusedopt, case.name, option):
        pytest.skip(f"{case.name} has no {option}")
    optimizer = case.make(make_params(device.name), **{option: True})
    set_grads(optimizer, 0)
    optimizer.step()
    set_grads(optimizer, 1)
    with device.without_waiting():
        optimizer.step()
    found = run(optimizer, 1, first=2)
    for state in optimizer.state.values():
        if "step" in state:
            assert state["step"].device.type == device.name
            assert state["step"].dtype == torch.float32
    found[0].pop(option, None), expected[0].pop(option, None)  # the group
    assert_identical(found, expected)


@over(CASES, "case")
def test_numbers_on_the_device(case: Case, device: Device) -> None:  # noqa: F811
    """Every number that may be a tensor is one, and the host doesn't ask for it."""
    found = []
    for where in ("cpu", device.name):
        optimizer = case.make(make_params(where))
        for group in optimizer.param_groups:
            group.update(numbers_on(where, case))
        set_grads(optimizer, 0)
        optimizer.step()
        for p in optimizer.param_groups[0]["params"]:
            p.grad = random(p.shape, 5).to(p)
        with device.without_waiting():
            optimizer.step()
        optimizer.param_groups[0]["lr"] = torch.full((), 0.25).to(where)
        found.append(run(optimizer, 2, first=2))
    assert_identical(found[1], found[0])


@pytest.mark.parametrize("overflows", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0, 1)])
@pytest.mark.parametrize("scale", [None, 8.0])
@over(MAIN_CASES, "case")
def test_scaler_on_the_device(
    case: Case,
    scale: float | None,
    overflows: tuple[int, ...],
    device: Device,  # noqa: F811
) -> None:
    """An overflowing step is none, and the host learns nothing of it."""
    expected = case.make(make_params("cpu"))
    optimizer = case.make(make_params(device.name))
    for t, overflow in enumerate(overflows):
        if not overflow:
            set_grads(expected, t)
            expected.step()
        set_grads(optimizer, t)
        if scale is not None:
            for p in optimizer.param_groups[0]["params"]:
                p.grad *= scale
            optimizer.grad_scale = torch.tensor(scale).to(device.name)
        optimizer.found_inf = torch.tensor(float(overflow)).to(device.name)
        if case.counts_steps or optimizer.state:
            with device.without_waiting():
                optimizer.step()
        else:
            optimizer.step()  # whether there is a first step decides whether there is a buffer
    found, wanted = found_in(optimizer), found_in(expected)
    for values in (found, wanted):
        for value in [v for v in values if torch.is_tensor(v)][1::2]:
            value.zero_()  # gradients, which an overflow leaves scaled
    assert_identical(found, wanted)


@over(MAIN_CASES, "case")
def test_graph(case: Case, device: Device) -> None:  # noqa: F811
    """One captured step, replayed with other gradients and another learning rate."""
    expected = case.make(make_params("cpu"))
    optimizer = case.make(make_params(device.name), capturable=True)
    for group in (*optimizer.param_groups, *expected.param_groups):
        group["lr"] = torch.tensor(float(group["lr"])).to(group["params"][0].device)
    run(expected, 2)
    run(optimizer, 2)
    with device.capture() as replay:
        optimizer.step()
    for t in range(2, 5):
        set_grads(expected, t)
        expected.param_groups[0]["lr"].fill_(0.1 * t)
        optimizer.param_groups[0]["lr"].fill_(0.1 * t)
        expected.step()
        pairs = zip(
            optimizer.param_groups[0]["params"], expected.param_groups[0]["params"], strict=True
        )
        for p, q in pairs:
            p.grad.copy_(q.grad)
        replay()
    found = found_in(optimizer)
    found[0].pop("capturable", None)
    (wanted := found_in(expected))[0].pop("capturable", None)
    assert_identical(found, wanted)


@pytest.mark.parametrize("name", ["RMSprop", "Adadelta", "Adam", "AdamW"])
def test_a_graph_needs_capturable(name: str, device: Device) -> None:  # noqa: F811
    """As in torch."""
    optimizer = getattr(fusedopt, name)(make_params(device.name))
    run(optimizer, 1)
    before = contents(optimizer)
    with (
        pytest.raises(RuntimeError, match=f"instance of {name} but .* capturable is False"),
        device.capture(),
    ):
        optimizer.step()
    if isinstance(device, StandIn):  # of CUDA's, an error ends the capture, and all it was given
        assert_unchanged(optimizer, before)


@pytest.mark.parametrize("name", COUNTING)
def test_a_graph_needs_state(name: str, device: Device) -> None:  # noqa: F811
    optimizer = getattr(fusedopt, name)(make_params(device.name), capturable=True)
    set_grads(optimizer, 0)
    with pytest.raises(RuntimeError, match=r"'params'\]\[0\].*one step before"), device.capture():
        optimizer.step()
    run(optimizer, 1)


def test_sgd_can_be_captured_as_it_is(device: Device) -> None:  # noqa: F811
    optimizer = fusedopt.SGD(make_params(device.name), lr=0.5, momentum=0.5)
    expected = fusedopt.SGD(make_params("cpu"), lr=0.5, momentum=0.5)
    run(optimizer, 1)
    with device.capture() as replay:
        optimizer.step()
    replay()
    run(expected, 1)
    expected.step()
    assert_identical(found_in(optimizer), found_in(expected))


@pytest.mark.parametrize("name", COUNTING)
def test_a_checkpoint_from_the_cpu(name: str, device: Device) -> None:  # noqa: F811
    """Its counts move to the device, where they are needed there; without a wait once they have."""
    saved = getattr(fusedopt, name)(make_params("cpu"))
    run(saved, 3)
    expected = run(saved, 2, first=3)
    fresh = getattr(fusedopt, name)(make_params("cpu"))
    run(fresh, 3)
    optimizer = getattr(fusedopt, name)(make_params(device.name), capturable=True)
    checkpoint = fresh.state_dict()
    for group in checkpoint["param_groups"]:
        group["capturable"] = True
    optimizer.load_state_dict(checkpoint)
    with torch.no_grad():
        for p, q in zip(
            optimizer.param_groups[0]["params"], fresh.param_groups[0]["params"], strict=True
        ):
            p.copy_(q)
    for state in optimizer.state.values():
        state["step"] = state["step"].cpu()  # as an old checkpoint, or one edited by hand, has it
    found = run(optimizer, 2, first=3)
    assert all(state["step"].device.type == device.name for state in optimizer.state.values())
    found[0].pop("capturable", None)
    expected[0].pop("capturable", None)
    assert_identical(found, expected)


@over(MAIN_CASES, "case")
def test_host_and_device_in_one_optimizer(case: Case, device: Device) -> None:  # noqa: F811
    """Also with one learning rate and one scaler, on the device, for both."""
    mixed = case.make([*make_params("cpu"), *make_params(device.name)])
    alone = case.make([*make_params("cpu"), *make_params("cpu")])
    rate = torch.tensor(float(mixed.param_groups[0]["lr"]))
    mixed.param_groups[0]["lr"], alone.param_groups[0]["lr"] = rate.to(device.name), rate
    for t in range(3):
        for optimizer, where in ((mixed, device.name), (alone, "cpu")):
            set_grads(optimizer, t)
            optimizer.found_inf = torch.tensor(float(t == 1)).to(where)
            optimizer.grad_scale = torch.tensor(2.0).to(where)
            optimizer.step()
    assert kernels(mixed) == {case.name.lower()}
    assert_identical(found_in(mixed), found_in(alone))


def test_a_step_count_for_two_parameters(device: Device) -> None:  # noqa: F811
    """Threads of a device would count it at once: torch's own step takes the two."""
    optimizer = fusedopt.AdamW(make_params(device.name), fused=True)
    run(optimizer, 1)
    first, second = (optimizer.state[p] for p in optimizer.param_groups[0]["params"])
    second["step"] = first["step"]
    assert kernels(optimizer) == {"torch"}
    second["step"] = first["step"].clone()
    assert kernels(optimizer) == {"adamw"}


def test_a_step_count_that_is_no_number(device: Device) -> None:  # noqa: F811
    optimizer = fusedopt.AdamW(make_params(device.name), fused=True)
    run(optimizer, 1)
    state = optimizer.state[optimizer.param_groups[0]["params"][1]]
    count: Tensor = state["step"]
    state["step"] = torch.ones(2).to(device.name)
    with pytest.raises(RuntimeError, match=r"\['params'\]\[1\].*'step'.*one real number"):
        optimizer.step()
    state["step"] = count.half()
    assert kernels(optimizer) == {"adamw", "torch"}


def test_empty_parameters_are_counted(device: Device) -> None:  # noqa: F811
    optimizer = fusedopt.Adam(make_params(device.name, shapes=((0,), (2,), (0, 3))), fused=True)
    run(optimizer, 2)
    assert [state["step"].item() for state in optimizer.state.values()] == [2.0] * 3


@pytest.mark.parametrize("allowed", range(6))
@over(MAIN_CASES, "case")
def test_out_of_memory(case: Case, allowed: int, device: Device) -> None:  # noqa: F811
    """torch's own exception; nothing is half done, and the step can be made again."""
    if not isinstance(device, StandIn):
        pytest.skip("a GPU's memory doesn't run out at a chosen allocation")
    expected, optimizer = case.make(make_params("cpu")), case.make(make_params(device.name))
    for group in (*optimizer.param_groups, *expected.param_groups):
        group["lr"] = torch.tensor(float(group["lr"])).to(group["params"][0].device)
    set_grads(expected, 0)
    set_grads(optimizer, 0)
    before = contents(optimizer)
    device.module.allow(allowed)
    try:
        optimizer.step()
    except torch.OutOfMemoryError:
        device.module.allow(-1)
        assert_unchanged(optimizer, before)
        optimizer.step()
    else:
        assert allowed > 0
    finally:
        device.module.allow(-1)
    expected.step()
    assert_identical(run(optimizer, 2, 1), run(expected, 2, 1))


def test_a_kernel_not_yet_tried_and_a_graph(device: Device) -> None:  # noqa: F811
    """Trying one waits for the device, which a capture forbids: torch steps meanwhile."""
    if not isinstance(device, StandIn):
        pytest.skip("another test has tried all kernels, perhaps")
    param = Parameter(torch.ones(2, dtype=torch.float16).to(f"{device.name}:1"))
    param.grad = torch.ones_like(param)
    optimizer = fusedopt.SGD([param], lr=0.5)  # used by no other test on this device
    with device.capture():
        assert kernels(optimizer) == {"torch"}
    assert kernels(optimizer) == {"sgd"}
    with device.capture():
        assert kernels(optimizer) == {"sgd"}


def test_a_count_on_the_host_isnt_for_torchs_fused_step(
    device: Device,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its kernel would read the count at that address on the device."""
    whole = make_params(device.name, shapes=((4,),))[0]
    overlapping = [Parameter(whole.detach()[:3]), Parameter(whole.detach()[1:])]
    asked = []
    monkeypatch.setattr(
        "fusedopt.fallback._step_function",
        lambda cls: lambda optimizer: asked.append(optimizer.param_groups[0]["fused"]),
    )
    optimizer = fusedopt.AdamW(overlapping, fused=True)
    for where in (device.name, "cpu"):
        for p in overlapping:
            p.grad = torch.ones_like(p)
            states = {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[p] = {"step": torch.tensor(1.0).to(where), **states}
        assert kernels(optimizer) == {"torch"}
        optimizer.step()
    assert asked == [True, None]


def test_launches_and_streams(device: Device) -> None:  # noqa: F811
    if not isinstance(device, StandIn):
        pytest.skip("a GPU's launches are counted by the benchmarks' profile")
    params = [*make_params(f"{device.name}:0"), *make_params(f"{device.name}:1")]
    lr = torch.tensor(0.1)
    optimizer = fusedopt.AdamW(params, lr=lr.to(f"{device.name}:1"))
    device.module.launches()
    found = run(optimizer, 2)
    assert device.module.launches() == [(0, True), (1, True)] * 2  # each on its own stream
    expected = run(fusedopt.AdamW([*make_params("cpu"), *make_params("cpu")], lr=lr.item()), 2)
    found[0].pop("lr"), expected[0].pop("lr")
    assert_identical(found, expected)


def test_the_extension_loads_and_steps_without_a_gpu() -> None:
    code = (
        "import torch, fusedopt\n"
        "p = torch.nn.Parameter(torch.ones(2)); p.grad = torch.ones(2)\n"
        "fusedopt.AdamW([p]).step()\n"
    )
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
