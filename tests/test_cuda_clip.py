"""Norms and `max_grad_norm` on a device: the CPU's bits, and no waiting."""

from __future__ import annotations

import math

import torch
from cases import CLASS_CASES, Case, case, over
from device import Device, device  # noqa: F401  (a fixture)
from helpers import SHAPES, assert_identical, kernels, random
from torch import Tensor
from torch.nn import Parameter

import fusedopt

WIDTHS = (torch.float32, torch.bfloat16, torch.float16)
LIMIT = 0.5


def grads_on(where: str, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    shapes = [*SHAPES, (2003,), (70, 70)]
    return [random(shape, 100 * seed + i, dtype).to(where) for i, shape in enumerate(shapes)]


@over(WIDTHS, "dtype")
@over((2.0, 1.0, math.inf, -math.inf), "order")
def test_the_cpus_bits(order: float, dtype: torch.dtype, device: Device) -> None:  # noqa: F811
    grads = grads_on(device.name, dtype)
    fusedopt.get_total_norm(grads)  # the first on a device waits for a trial of the kernels
    with device.without_waiting():
        norm = fusedopt.get_total_norm(grads, order)
    assert norm.device.type == grads[0].device.type and norm.dtype == torch.float32
    assert_identical(norm.cpu(), fusedopt.get_total_norm(grads_on("cpu", dtype), order))


@over(CLASS_CASES, "case")
def test_max_grad_norm(case: Case, device: Device) -> None:  # noqa: F811
    """The bits of a step on the CPU, and the coefficient never leaves the device."""
    found = []
    for where in ("cpu", device.name):
        params = [Parameter(grad) for grad in grads_on(where, torch.float32, seed=9)]
        optimizer = case.make(params, max_grad_norm=LIMIT)
        for t in range(3):
            for param, grad in zip(params, grads_on(where, torch.float32, t), strict=True):
                param.grad = grad
            if where != "cpu" and t > 0:
                with device.without_waiting():
                    optimizer.step()
            else:
                optimizer.step()
        assert kernels(optimizer) == {case.name.lower()}
        assert optimizer.grad_norm.device.type == params[0].device.type
        found.append([optimizer.grad_norm.cpu(), [param.detach().cpu() for param in params]])
    assert_identical(found[1], found[0])


def test_with_a_scaler_on_the_device(device: Device) -> None:  # noqa: F811
    """Unscaled by a number that is there, and nothing happens where found_inf is set there."""
    results = []
    for where in ("cpu", device.name):
        params = [Parameter(grad) for grad in grads_on(where, torch.float32, seed=9)]
        optimizer = case("AdamW-all").make(params, max_grad_norm=LIMIT)
        for t, found_inf in enumerate((0.0, 1.0, 0.0)):
            for param, grad in zip(params, grads_on(where, torch.float32, t), strict=True):
                param.grad = grad * 8
            optimizer.grad_scale = torch.tensor(8.0).to(where)
            optimizer.found_inf = torch.tensor(found_inf).to(where)
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf
        results.append([param.detach().cpu() for param in params])
    assert_identical(results[1], results[0])


def test_a_nan_on_the_device(device: Device) -> None:  # noqa: F811
    grads = grads_on(device.name, torch.float32)
    host = grads_on("cpu", torch.float32)
    host[-1][3, 3] = math.nan
    grads[-1] = host[-1].to(device.name)
    assert fusedopt.get_total_norm(grads).cpu().isnan()


def test_parameters_on_both(device: Device) -> None:  # noqa: F811
    """One norm of all; the host's parameters wait for it."""
    there = [Parameter(grad) for grad in grads_on(device.name, torch.float32)]
    here = [Parameter(grad) for grad in grads_on("cpu", torch.float32)]
    alone = [Parameter(grad) for _ in range(2) for grad in grads_on("cpu", torch.float32)]
    both = fusedopt.SGD([*there, *here], lr=0.1, max_grad_norm=LIMIT)
    expected = fusedopt.SGD(alone, lr=0.1, max_grad_norm=LIMIT)
    for params in ([*there, *here], alone):
        for param in params:
            param.grad = param.detach().clone()
    both.step()
    expected.step()
    found = [param.detach().cpu() for param in [*there, *here]]
    torch.testing.assert_close(found, [param.detach() for param in alone])
