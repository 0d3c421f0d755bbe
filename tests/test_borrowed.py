"""Objects that are replaced or dropped while the extension reads them, by code that it can't avoid.

A dict's key may compare itself by code of its own, a weak reference's proxy runs its target's, and
while the interpreter's lock is released another thread does anything. A call sees everything as
before or as after, and reads nothing that is gone, as AddressSanitizer shows (`make
sanitize-python`).
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from helpers import make_params, set_grads
from torch import nn
from torch.nn import Parameter

import fusedopt
from fusedopt import swa_utils as ours


class Key:
    """Equals nothing, and acts when it is compared with a str, for the first time since armed."""

    def __init__(self, name: str, act: Callable[[], object]) -> None:
        self.name, self.act, self.armed = name, act, False

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        if self.armed and isinstance(other, str):
            self.armed = False
            self.act()
            gc.collect()
        return self is other


def put_first(dict_: dict[Any, Any], name: str, act: Callable[[], object]) -> Key:
    """Has a look for the name meet an armed key first."""
    key = Key(name, act)
    entries = dict(dict_)
    dict_.clear()
    dict_.update({key: None, **entries})
    key.armed = True
    return key


@pytest.mark.parametrize("set_to_none", [True, False])
def test_groups_replaced_while_gradients_are_dropped(set_to_none: bool) -> None:
    params = make_params([(4,)] * 3)
    optimizer = fusedopt.SGD([{"params": make_params([(4,)] * 50)}, {"params": params}], lr=0.1)
    for group in optimizer.param_groups:
        set_grads(group["params"], 0)

    def act() -> None:
        optimizer.param_groups[0]["params"].clear()
        optimizer.param_groups.clear()

    key = put_first(optimizer.param_groups[1], "params", act)
    optimizer.zero_grad(set_to_none)
    assert not key.armed
    assert all(p.grad is None or not p.grad.any() for p in params)


@pytest.mark.parametrize("name", ["defaults", "_zero_grad_profile_name"])
def test_the_list_of_groups_replaced_while_it_is_read(name: str) -> None:
    params = make_params()
    optimizer = fusedopt.SGD(params, lr=0.1)
    set_grads(params, 0)

    def act() -> None:
        optimizer.param_groups = [dict(group) for group in optimizer.param_groups]

    key = put_first(optimizer.__dict__, name, act)
    optimizer.zero_grad()
    assert not key.armed
    assert all(p.grad is None for p in params)


def test_options_replaced_while_another_is_read() -> None:
    params = make_params()
    optimizer = fusedopt.SGD(params, lr=0.1)
    set_grads(params, 0)
    group = optimizer.param_groups[0]

    class Flag:
        def __bool__(self) -> bool:
            group.update(master_weights=False, state_dtype=None)
            gc.collect()
            return False

    flag = Flag()
    group.update(stochastic_rounding=weakref.proxy(flag), master_weights=[], state_dtype=[1])
    before = [p.detach().clone() for p in params]
    optimizer.step()
    assert not any(torch.equal(p, b) for p, b in zip(params, before, strict=True))


def test_a_tensor_of_an_option_swapped_for_another() -> None:
    """swap_tensors takes an object's tensor away, which the step still has."""
    params = make_params([(4,), (4,)])
    groups = [{"params": params[:1], "lr": torch.tensor(0.1)}, {"params": params[1:]}]
    optimizer = fusedopt.SGD(groups, lr=0.1)
    set_grads(params, 0)
    before = [p.detach().clone() for p in params]

    class Number:
        def __float__(self) -> float:
            torch.utils.swap_tensors(optimizer.param_groups[0]["lr"], torch.tensor(0.2))
            return 0.1

    optimizer.param_groups[1]["lr"] = Number()
    with pytest.raises(TypeError, match="can't be read") as caught:
        optimizer.step()
    assert isinstance(caught.value.__cause__, RuntimeError)
    for p, b in zip(params, before, strict=True):
        assert torch.equal(p, b)


def average_of(model: nn.Module) -> ours.AveragedModel:
    averaged = ours.AveragedModel(model, multi_avg_fn=ours.get_ema_multi_avg_fn(0.5))
    averaged.update_parameters(model)
    return averaged


@pytest.mark.parametrize("name", ["multi_avg_fn", "avg_fn", "_fusedopt_dtype"])
def test_a_parameter_swapped_while_the_formula_is_read(name: str) -> None:
    model = nn.Sequential(*[nn.Linear(30, 30) for _ in range(5)])
    averaged = average_of(model)

    def act() -> None:
        torch.utils.swap_tensors(model[1].weight, Parameter(torch.zeros(2, 2)))

    key = put_first(averaged.__dict__, name, act)
    with pytest.raises(RuntimeError, match="must match"):  # torch's
        averaged.update_parameters(model)
    assert not key.armed


def test_modules_dropped_while_they_are_walked() -> None:
    model = nn.Module()
    model.first = nn.Sequential(*[nn.Linear(3, 3) for _ in range(5)])
    model.second = nn.Linear(3, 3)
    averaged = average_of(model)

    def act() -> None:
        model.first._modules = {}
        del model.first

    key = put_first(model.first[2].__dict__, "_parameters", act)
    with suppress(RuntimeError):  # torch's: a dict changed size during iteration
        averaged.update_parameters(model)
    assert not key.armed


def test_a_parameter_swapped_while_another_module_is_walked() -> None:
    model = nn.Sequential(*[nn.Linear(30, 30) for _ in range(5)])
    averaged = average_of(model)

    def act() -> None:
        torch.utils.swap_tensors(model[1].weight, Parameter(torch.zeros(2, 2)))

    key = put_first(model[3].__dict__, "_parameters", act)
    with pytest.raises(RuntimeError, match="must match"):  # torch's
        averaged.update_parameters(model)
    assert not key.armed


@contextmanager
def meanwhile(act: Callable[[], object]) -> Iterator[None]:
    """Another thread acts as soon as this one releases the interpreter's lock, and keeps it."""
    waiting = threading.Lock()
    waiting.acquire()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)  # seconds

    def run() -> None:
        waiting.acquire()
        act()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        waiting.release()
        yield
    finally:
        thread.join()
        sys.setswitchinterval(interval)


COUNT = 300  # so many that the other thread is awake before all are written


def test_gradients_that_get_other_memory_while_they_are_zeroed() -> None:
    params = make_params([(30_000,)] * COUNT, torch.float32)
    set_grads(params, 0)
    optimizer = fusedopt.SGD(params, lr=0.1)
    grads = [p.grad for p in params if p.grad is not None]
    memory = [grad.detach() for grad in grads]
    expanded = torch.ones(1).expand(30_000)

    def act() -> None:
        for grad in reversed(grads):
            grad.data = expanded

    with meanwhile(act):
        optimizer.zero_grad(set_to_none=False)
    assert not any(m.any() for m in memory)


@pytest.mark.parametrize("kind", ["parameter", "buffer", "n_averaged"])
def test_models_that_get_other_memory_while_they_are_averaged(kind: str) -> None:
    model = nn.Module()
    for i in range(COUNT):
        if kind == "buffer":
            model.register_buffer(f"buffer{i}", torch.zeros(30_000))
        model.register_parameter(f"parameter{i}", Parameter(torch.zeros(30_000)))
    averaged = average_of(model)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(1)
    replaced = [averaged.n_averaged] if kind == "n_averaged" else [*model.parameters()][::-1]
    if kind == "buffer":
        replaced += [*model.buffers()][::-1]
    small = torch.ones(1)

    def act() -> None:
        for tensor in replaced:
            tensor.data = small

    with meanwhile(act):
        averaged.update_parameters(model)
    assert averaged.n_averaged in ((1, 2) if kind == "n_averaged" else (2,))
    assert all(p.eq(0.5).all() for p in averaged.module.parameters())
    assert all(b.eq(1).all() for b in averaged.module.buffers())


FIRST = """
import builtins, faulthandler, threading
from fusedopt import _C
faulthandler.dump_traceback_later(20, exit=True)
real = builtins.__import__
def of_another_thread(name, *args):
    if name == "collections":
        builtins.__import__ = real
        thread = threading.Thread(target=_C.Plan, args=("SGD",))
        thread.start()
        thread.join()
    return real(name, *args)
builtins.__import__ = of_another_thread
_C.Plan("SGD")
assert builtins.__import__ is real
"""


def test_two_first_optimizers_in_two_threads() -> None:
    """What is imported when it is first needed mustn't keep another thread waiting for it."""
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_step_from_the_stack_that_anomaly_mode_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm notes no graph: that runs Python code, in which a step would wait for itself."""
    from torch.fx import traceback

    params = make_params([(4, 4), (3,)])
    optimizer = fusedopt.SGD(params, lr=0.1, max_grad_norm=1.0)
    whole = torch.ones(8, 8, dtype=torch.float64, requires_grad=True) * 2
    params[0].grad, params[1].grad = whole[::2, ::2], torch.ones(3, dtype=torch.float64)
    seen: list[int] = []
    monkeypatch.setattr(traceback, "format_stack", lambda: seen.append(1) or [])
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        optimizer.step()
    assert not seen


def test_a_norm_of_more_digits_than_a_float_has() -> None:
    params = make_params()
    set_grads(params, 0)
    optimizer = fusedopt.SGD(params, lr=0.1)
    optimizer.max_grad_norm = 10**400
    with pytest.raises(OverflowError, match="int too large to convert to float"):
        optimizer.step()
