"""Averages that torch's code updates: overridden methods, unlike models, odd tensors."""

from __future__ import annotations

import gc
import threading
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from averages import FP32, FUNCTIONS, Both, fill, ulps_of, values
from helpers import assert_identical
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import swa_utils as torchs

from fusedopt import _C
from fusedopt import swa_utils as ours


class Other(nn.Module):
    """Its methods are the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Parameter(torch.zeros(3)), Parameter(torch.zeros(3))

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        return reversed(list(super().parameters(recurse)))


class OtherModules(nn.Sequential):
    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        yield from list(super().named_modules(*args, **kwargs))[:2]


def test_overridden_parameters() -> None:
    both = Both(Other(), "default")
    both.update(fast=False)
    both.assert_same()
    # torch asks only the root for its parameters.
    both = Both(nn.Sequential(Other()), "default")
    both.update()
    both.assert_same()
    both = Both(nn.Sequential(OtherModules(nn.Linear(2, 2), nn.Linear(2, 2))), "default")
    both.update(fast=False)
    both.assert_same()


def test_parameters_of_one_object() -> None:
    both = Both(nn.Linear(3, 3), "default")
    asked = []
    plain = both.model.parameters
    both.model.parameters = lambda *args: asked.append(1) or plain(*args)  # type: ignore[method-assign]
    both.update(2, fast=False)
    assert len(asked) > 2
    both.assert_same()


def test_replaced_functions_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def spy(module: Any, name: str) -> None:
        original = getattr(module, name)

        def replacement(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, replacement)

    for module, name in (
        (torchs, "get_swa_avg_fn"),
        (torchs.AveragedModel, "update_parameters"),
        (nn.Module, "named_parameters"),
        (Tensor, "copy_"),
        (torch, "_foreach_lerp_"),
    ):
        averaged = ours.AveragedModel(model := nn.Linear(2, 2), **FUNCTIONS["default"](ours))
        if name == "_foreach_lerp_":
            averaged.multi_avg_fn = ours.get_ema_multi_avg_fn(0.5)
        spy(module, name)
        averaged.update_parameters(model)
        averaged.update_parameters(model)
        assert name in calls
        monkeypatch.undo()
        calls.clear()
        assert _C.update_parameters(averaged, model)


def test_unequal_models() -> None:
    """torch's zip stops at the shorter list of parameters, and refuses other lists of buffers."""
    both = Both(nn.Linear(3, 3), "default")
    both.model.extra = Parameter(torch.zeros(2))
    both.update(2, fast=False)
    both.assert_same()
    both.model.register_buffer("late", torch.zeros(2))
    for averaged in (both.ours, both.torchs):
        with pytest.raises(ValueError, match="zip"):
            averaged.update_parameters(both.model)
    both.assert_same()


def test_broadcast_shapes_are_torchs() -> None:
    both = Both(nn.Linear(3, 3), "default")
    both.model.bias = Parameter(torch.ones(1))
    both.update(2, fast=False)
    both.assert_same()


def test_shared_memory_is_torchs() -> None:
    model = nn.Linear(3, 3)
    averaged = ours.AveragedModel(model)
    averaged.update_parameters(model)
    averaged.module.bias.data = averaged.module.weight.data[0]
    assert not _C.update_parameters(averaged, model)
    averaged.module.bias.data = model.weight.data[0]
    assert not _C.update_parameters(averaged, model)
    assert not _C.update_parameters(averaged, averaged.module)
    averaged.module.bias.data = torch.zeros(1).expand(3)
    assert not _C.update_parameters(averaged, model)


def test_model_whose_parameters_share_memory() -> None:
    """It is only read."""
    both = Both(nn.Linear(3, 3), "default")
    both.model.bias.data = both.model.weight.data[1]
    both.update()
    both.assert_same()


@pytest.mark.parametrize("dtype", [torch.int32, FP32], ids=str)
def test_n_averaged_of_another_dtype(dtype: torch.dtype) -> None:
    both = Both(nn.Linear(3, 3), "default")
    for averaged in (both.ours, both.torchs):
        averaged.n_averaged = averaged.n_averaged.to(dtype)
    both.update(fast=False)
    both.assert_same()


@pytest.mark.parametrize("number", [-5, 2**24 + 1, 2**40])
def test_n_averaged_of_any_value(number: int) -> None:
    for function in ("default", "swa_multi"):
        both = Both(nn.Linear(3, 3), function)
        for averaged in (both.ours, both.torchs):
            averaged.n_averaged.fill_(number)
        both.update(fast=number > 0)
        both.assert_same(ulps_of(function, FP32))


class Subclass(Tensor):
    pass


def test_odd_tensors_are_torchs() -> None:
    oddities = [
        torch.zeros(3).as_subclass(Subclass),
        torch.zeros(3, device="meta"),
        torch.zeros(3).to_sparse(),
        torch.zeros(3, dtype=torch.complex64),
    ]
    for odd in oddities:
        model = nn.Linear(2, 2)
        averaged = ours.AveragedModel(model)
        averaged.update_parameters(model)
        model.odd = Parameter(odd)
        averaged.module.odd = Parameter(odd.detach())
        assert not _C.update_parameters(averaged, model)
    with torch.inference_mode():
        model = nn.Linear(2, 2)
    assert not _C.update_parameters(ours.AveragedModel(nn.Linear(2, 2)), model)


def test_modes_are_torchs() -> None:
    averaged = ours.AveragedModel(model := nn.Linear(2, 2))
    with torch.inference_mode():
        assert not _C.update_parameters(averaged, model)
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            type(self).calls += 1
            return func(*args, **(kwargs or {}))

    with Mode():
        averaged.update_parameters(model)
    assert Mode.calls > 3
    assert averaged.n_averaged == 1


def test_no_model() -> None:
    averaged = ours.AveragedModel(nn.Linear(2, 2))
    for none in (None, 3, object(), [nn.Linear(2, 2)]):
        with pytest.raises(AttributeError):
            averaged.update_parameters(none)  # type: ignore[arg-type]
    assert averaged.n_averaged == 0
    deep = nn.Sequential()
    for _ in range(250):
        deep = nn.Sequential(deep)
    assert not _C.update_parameters(averaged, deep)


def test_gradients_are_left_alone() -> None:
    model = nn.Linear(2, 2)
    averaged = ours.AveragedModel(model)
    averaged.update_parameters(model)
    averaged(torch.ones(1, 2)).sum().backward()
    grads = [p.grad for p in averaged.parameters()]
    out = averaged.module.weight * averaged.module.weight  # saved for backward
    averaged.update_parameters(model)
    assert all(p.requires_grad and p.is_leaf for p in averaged.parameters())
    assert [p.grad for p in averaged.parameters()] == grads
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_lazily_copied_memory() -> None:
    model = nn.Linear(2, 2)
    averaged = ours.AveragedModel(model)
    kept = averaged.module.weight.detach()._lazy_clone()
    before = kept.clone()
    for t in range(2):
        fill(model, t)
        averaged.update_parameters(model)
    assert_identical(kept, before)


def test_finalisers_and_threads() -> None:
    """Whatever others do meanwhile, each update is whole."""
    model = nn.Linear(1000, 1100)
    averaged = ours.AveragedModel(model, multi_avg_fn=ours.get_ema_multi_avg_fn(0.5))
    stop = threading.Event()

    def replace(model: nn.Module = model) -> None:
        while not stop.is_set():
            model.weight.data = torch.ones(1100, 1000)
            averaged.module.bias.data = torch.zeros(1100)
            gc.collect(0)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(20):
            averaged.update_parameters(model)
    finally:
        stop.set()
        thread.join()
    assert averaged.n_averaged == 20
    gone = weakref.ref(model)
    del model, thread, replace
    gc.collect()
    assert gone() is None


def test_compiled_code() -> None:
    """Traced, torch's own method runs."""
    model = nn.Linear(2, 2)
    averaged = ours.AveragedModel(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(averaged.update_parameters, backend="eager")
        for t in range(3):
            fill(model, t)
            compiled(model)
    assert averaged.n_averaged == 3
    assert_identical(values(averaged)[:-1], values(averaged)[:-1])


def test_device_context() -> None:
    both = Both(nn.Linear(2, 2), "default")
    with torch.device("cpu"):
        both.update()
    both.assert_same()
