"""Averages of models: torch.optim.swa_utils' values, counts and objects, by one call into C++."""

from __future__ import annotations

import copy
import gc
import hashlib
import importlib
import json
import os
import pickle
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import assert_identical, random
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import swa_utils as torchs

import fusedopt
from fusedopt import _C
from fusedopt import swa_utils as ours

FUNCTIONS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "default": lambda m: {},
    "ema_multi": lambda m: {"multi_avg_fn": m.get_ema_multi_avg_fn(0.9)},
    "ema_multi_far": lambda m: {"multi_avg_fn": m.get_ema_multi_avg_fn(0.25)},
    "swa_multi": lambda m: {"multi_avg_fn": m.get_swa_multi_avg_fn()},
    "ema": lambda m: {"avg_fn": m.get_ema_avg_fn(0.9)},
    "swa": lambda m: {"avg_fn": m.get_swa_avg_fn()},
}
LERPS = ("ema_multi", "ema_multi_far", "swa_multi")
FP32, FP64, BF16, FP16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


class Model(nn.Module):
    """Parameters of these shapes, BatchNorm's buffers, and some of other kinds."""

    def __init__(self, dtype: torch.dtype = FP32) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU())
        self.list = nn.ParameterList([Parameter(torch.zeros(n)) for n in (1, 13, 130)])
        self.again = self.first  # the same module twice
        self.scale = Parameter(torch.zeros(()))
        self.tied = self.first[0].bias
        self.nothing = None
        self.register_parameter("missing", None)
        self.register_buffer("absent", None)
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("table", torch.zeros(3, 4))
        self.to(dtype)
        fill(self, 0)


def fill(model: nn.Module, seed: int) -> None:
    """New values for all that a model has."""
    with torch.no_grad():
        for i, t in enumerate([*model.parameters(), *model.buffers()]):
            new = random(t.shape, 1000 * seed + i)
            t.copy_(new if t.is_floating_point() or t.is_complex() else (100 * new).round())


def values(model: nn.Module) -> list[Tensor]:
    """All that an average has, and how often it was written."""
    found = [*model.parameters(), *model.buffers()]
    return [t.detach().clone() for t in found] + [torch.tensor([t._version for t in found])]


class Both:
    """An average of torch's and one of ours, of one model."""

    def __init__(self, model: nn.Module, function: str = "ema_multi", **options: Any) -> None:
        self.model = model
        make = FUNCTIONS[function]
        self.torchs = torchs.AveragedModel(model, **make(torchs), **options)
        self.ours = ours.AveragedModel(model, **make(ours), **options)

    def update(self, times: int = 3, *, fast: bool = True) -> None:
        """Updates both by the same values. Expects our kernels to have taken all, or nothing."""
        for t in range(times):
            fill(self.model, t + 1)
            before = values(self.ours)
            taken = _C.update_parameters(self.ours, self.model)
            assert taken is fast
            if not taken:
                assert_identical(values(self.ours), before)
                self.ours.update_parameters(self.model)
            self.torchs.update_parameters(self.model)

    def assert_same(self, ulps: float = 0) -> None:
        """The same values but for so many units in the last place of the largest."""
        assert self.ours.state_dict().keys() == self.torchs.state_dict().keys()
        for mine, theirs in zip(values(self.ours), values(self.torchs), strict=True):
            assert mine.dtype == theirs.dtype and mine.stride() == theirs.stride()
            if ulps and mine.is_floating_point() and mine.numel():
                unit = torch.finfo(mine.dtype).eps * theirs.double().abs().max().clamp(min=1)
                assert (mine.double() - theirs.double()).abs().max() <= ulps * unit
            else:
                assert_identical(mine, theirs)


def ulps_of(function: str, dtype: torch.dtype) -> float:
    """In units of the largest, as results may cancel.

    torch fuses multiplication and addition in lerp where the processor can; its other functions
    round each operation's result to 16 bits, and ours the last one's.
    """
    if function in LERPS:
        return 1
    return 0 if dtype in (FP32, FP64) else 4


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("dtype", [FP32, FP64, BF16, FP16], ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_values(function: str, dtype: torch.dtype, use_buffers: bool) -> None:
    both = Both(Model(dtype), function, use_buffers=use_buffers)
    if function == "swa_multi" and use_buffers:  # torch refuses integers, after it has copied
        both.update(1)
        with pytest.raises(RuntimeError, match="Integer division"):
            both.ours.update_parameters(both.model)
        return
    both.update(4)
    both.assert_same(ulps_of(function, dtype))


def test_first_update_copies_bits() -> None:
    model = nn.Linear(3, 3)
    odd = torch.tensor([0x7F800001, 0x7FC12345, -(2**31)] * 3, dtype=torch.int32).view(FP32)
    averaged = ours.AveragedModel(model)
    model.weight.data.copy_(odd.view(3, 3))
    assert _C.update_parameters(averaged, model)
    assert_identical(
        averaged.module.weight.detach().view(torch.int32), odd.view(3, 3).view(torch.int32)
    )


@pytest.mark.parametrize("default", [FP64, BF16], ids=str)
@pytest.mark.parametrize("function", ["default", "swa_multi", "ema"])
def test_default_dtype(function: str, default: torch.dtype) -> None:
    """In which torch computes with n_averaged, and with integers."""
    model = Model(FP64)
    del model.first[1].num_batches_tracked
    if function != "swa_multi":
        model.register_buffer("count", torch.tensor([3, 100_000_007]))
    both = Both(model, function, use_buffers=True)
    torch.set_default_dtype(default)
    try:
        both.update(fast=default is FP64)
    finally:
        torch.set_default_dtype(FP32)
    both.assert_same(ulps_of(function, FP64))


@pytest.mark.parametrize("function", ["default", "ema_multi", "ema"])
def test_integers(function: str) -> None:
    """Computed as torch does, in float32 and rounded towards zero."""
    model = nn.Linear(2, 2)
    model.register_buffer("count", torch.tensor([0, -7, 2**24 + 3, 2**40 + 1]))
    both = Both(model, function, use_buffers=True)
    for t in range(5):
        model.count += torch.tensor([1, -5, 77, 2**33 + t])
        assert _C.update_parameters(both.ours, model)
        both.torchs.update_parameters(model)
    both.assert_same(ulps_of(function, FP32))
    assert_identical(both.ours.module.count, both.torchs.module.count)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.complex64], ids=str)
@pytest.mark.parametrize("use_buffers", [False, True])
def test_other_buffers(dtype: torch.dtype, use_buffers: bool) -> None:
    """Copied as they are; averaged by torch."""
    model = nn.Linear(2, 2)
    model.register_buffer("other", torch.ones(5, dtype=dtype))
    both = Both(model, "ema_multi", use_buffers=use_buffers)
    both.update(1)
    both.update(2, fast=not use_buffers)
    both.assert_same(4)


def channels_last() -> Tensor:
    return random((2, 3, 4, 5), 1, FP32).contiguous(memory_format=torch.channels_last)


LAYOUTS: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
    "channels_last": (channels_last, channels_last),
    "one_channels_last": (lambda: random((2, 3, 4, 5), 1, FP32), channels_last),
    "transposed": (lambda: random((40, 30), 1, FP32).t(), lambda: random((30, 40), 2, FP32)),
    "sliced": (lambda: random((6, 20), 1, FP32)[:, ::2], lambda: random((6, 10), 2, FP32)),
    "expanded": (lambda: random((6, 5), 1, FP32), lambda: random((5,), 2, FP32).expand(6, 5)),
    "empty": (lambda: torch.zeros(0, 3), lambda: torch.zeros(0, 3)),
    "unaligned": (lambda: random((9,), 1, FP32)[1:], lambda: random((10,), 1, FP32)[2:]),
}


@pytest.mark.parametrize("function", ["default", "ema_multi"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, function: str) -> None:
    average, newest = LAYOUTS[layout]
    both = Both(nn.Linear(2, 2), function)
    both.model.register_parameter("p", Parameter(newest()))
    both.model.register_buffer("b", newest())
    for averaged in (both.ours, both.torchs):
        averaged.module.register_parameter("p", Parameter(average()))
        averaged.module.register_buffer("b", average())
    for t in range(3):
        with torch.no_grad():
            memory = both.model.p.untyped_storage()
            memory.copy_(random((len(memory) // 4,), t, FP32).untyped_storage())
        assert _C.update_parameters(both.ours, both.model)
        both.torchs.update_parameters(both.model)
    both.assert_same(ulps_of(function, FP32))


def test_large_model() -> None:
    """Shared among threads, with the interpreter's lock given up."""
    torch.set_num_threads(2)
    model = nn.Linear(1100, 1000)
    model.register_buffer("large", torch.zeros(1_100_000))
    both = Both(model, "default")
    both.update(2)
    both.assert_same()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_16_bit_models_averaged_in_float32(function: str) -> None:
    """As an average in float32 of the same model in float32."""
    model, wide = Model(BF16), Model(FP32)
    mine = ours.AveragedModel(model, **FUNCTIONS[function](ours), dtype=FP32)
    theirs = torchs.AveragedModel(wide, **FUNCTIONS[function](torchs))
    assert {p.dtype for p in mine.parameters()} == {FP32}
    assert mine.module.first[1].num_batches_tracked.dtype is torch.int64
    for t in range(4):
        fill(model, t)
        wide.load_state_dict(model.state_dict())
        assert _C.update_parameters(mine, model)
        theirs.update_parameters(wide)
    for a, b in zip(values(mine)[:-1], values(theirs)[:-1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_bfloat16_average_stands_still_and_float32_does_not() -> None:
    model = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    options = {"multi_avg_fn": ours.get_ema_multi_avg_fn(0.999)}
    narrow = ours.AveragedModel(model, **options)
    wide = ours.AveragedModel(model, **options, dtype=FP32)
    for t in range(1001):
        model.weight.data.fill_(1.5 if t else 1.0)
        narrow.update_parameters(model)
        wide.update_parameters(model)
    assert narrow.module.weight.item() == 1
    assert wide.module.weight.item() == pytest.approx(1.5 - 0.5 * 0.999**1000, rel=1e-4)


def test_float32_average_by_torch() -> None:
    """Where a parameter isn't for our kernels, torch computes in the average's dtype too."""
    model = Model(BF16)
    model.extra = Parameter(torch.ones(3, dtype=torch.complex64))
    both = [
        ours.AveragedModel(m, **FUNCTIONS["ema_multi"](ours), dtype=FP32)
        for m in (model, Model(BF16))
    ]
    for t in range(3):
        fill(model, t)
        assert t == 0 or not _C.update_parameters(both[0], model)
        both[0].update_parameters(model)
        fill(rest := Model(BF16), t)
        for p, q in zip(
            list(rest.parameters()),
            [p for p in model.parameters() if not p.is_complex()],
            strict=True,
        ):
            p.data.copy_(q.data)
        both[1].update_parameters(rest)
    mine = [p for p in both[0].parameters() if not p.is_complex()]
    for p, q in zip(mine, both[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, "float32"])
def test_dtype_that_is_none(dtype: Any) -> None:
    with pytest.raises(TypeError, match="dtype"):
        ours.AveragedModel(nn.Linear(2, 2), dtype=dtype)


def test_unlike_dtypes_are_torchs() -> None:
    both = Both(nn.Linear(2, 2), "ema_multi")
    both.ours.double()
    both.ours.update_parameters(both.model)
    with pytest.raises(RuntimeError, match="dtype"):
        both.ours.update_parameters(both.model)
    both = Both(nn.Linear(2, 2).bfloat16(), "default")
    both.ours.float()
    both.torchs.float()
    both.update(1)
    if torch.__version__.startswith("2.11."):  # it refuses what later ones promote
        for average in (both.ours, both.torchs):
            with pytest.raises(RuntimeError, match="dtype"):
                average.update_parameters(both.model)
        return
    both.update(2, fast=False)
    both.assert_same()


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


def test_users_functions() -> None:
    """Are called, and torch's own too."""
    seen = []

    def average(averaged: Any, current: Any, number: Any) -> Any:
        seen.append(int(number))
        return torch.maximum(averaged, current)

    model = nn.Linear(3, 3)
    for cls in (ours.AveragedModel, torchs.AveragedModel):
        averaged = cls(model, avg_fn=average)
        for _ in range(3):
            averaged.update_parameters(model)
    assert seen == [1, 1, 2, 2] * 2
    mine = ours.AveragedModel(model, multi_avg_fn=torchs.get_ema_multi_avg_fn(0.5))
    theirs = ours.AveragedModel(model, multi_avg_fn=ours.get_ema_multi_avg_fn(0.5))
    for t in range(3):
        fill(model, t)
        mine.update_parameters(model)
        theirs.update_parameters(model)
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_function_in_the_wrong_place() -> None:
    model = nn.Linear(3, 3)
    averaged = ours.AveragedModel(model, multi_avg_fn=ours.get_ema_avg_fn(0.5))
    averaged.update_parameters(model)
    with pytest.raises(TypeError):
        averaged.update_parameters(model)


@pytest.mark.parametrize("function", ["ema_multi", "swa_multi"])
@pytest.mark.parametrize("number", [3, torch.tensor(3), torch.tensor(3.0)], ids=repr)
def test_functions_of_lists(function: str, number: Any) -> None:
    mine, theirs = (FUNCTIONS[function](m)["multi_avg_fn"] for m in (ours, torchs))
    for dtype in (FP32, FP64, BF16, torch.complex64, torch.int64):
        results = []
        for average in (mine, theirs):
            start = [
                Parameter(10 * random((n,), n, FP64).to(dtype), dtype.is_floating_point)
                for n in (4, 130)
            ]
            newest = [10 * random((n,), n + 1, FP64).to(dtype) for n in (4, 130)]
            try:
                assert average(start, newest, number) is None
            except RuntimeError as error:
                results.append(type(error))
                continue
            results.append(
                [p.detach() for p in start] + [torch.tensor([p._version for p in start])]
            )
        if isinstance(results[1], list):
            for a, b in zip(*results, strict=True):
                torch.testing.assert_close(a, b)
        else:
            assert results[0] == results[1]
    assert isinstance(_C.average_tensors(mine, [torch.zeros(2)], (torch.ones(2),), 1), bool)
    with pytest.raises(IndexError):
        mine([], [], number)


@pytest.mark.parametrize("name", ["get_ema_avg_fn", "get_swa_avg_fn"])
def test_functions_of_tensors(name: str) -> None:
    a, b = random((5,), 0, FP32), random((5,), 1, FP32)
    assert_identical(getattr(ours, name)()(a, b, 3), getattr(torchs, name)()(a, b, 3))


@pytest.mark.parametrize("name", ["get_ema_avg_fn", "get_ema_multi_avg_fn"])
def test_decay(name: str) -> None:
    make = getattr(ours, name)
    for decay in (-0.1, 1.1):
        with pytest.raises(ValueError, match="Invalid decay"):
            make(decay)
    assert make(torch.tensor(0.5)).__module__ == "torch.optim.swa_utils"  # torch's own
    for decay in (0, 1, 0.0, 1.0):
        both = Both(nn.Linear(3, 3), "default")
        key = "multi_avg_fn" if "multi" in name else "avg_fn"
        setattr(both.ours, key, make(decay))
        setattr(both.torchs, key, getattr(torchs, name)(decay))
        both.update()
        both.assert_same(2)
    assert repr(make(0.5)) == f"fusedopt.swa_utils.{name}(0.5)"
    assert pickle.loads(pickle.dumps(make(0.5))).decay == copy.deepcopy(make(0.5)).decay == 0.5


def test_state_dicts_are_torchs() -> None:
    both = Both(Model(), "ema_multi")
    both.update()
    other = Both(Model(), "ema_multi")
    other.ours.load_state_dict(both.torchs.state_dict())
    other.torchs.load_state_dict(both.ours.state_dict())
    for averaged in (other.ours, other.torchs):
        assert averaged.n_averaged == 3
    fill(both.model, 9)
    for averaged in (both.ours, both.torchs, other.ours, other.torchs):
        averaged.update_parameters(both.model)
    both.assert_same(4)
    for p, q in zip(other.ours.parameters(), both.torchs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_copies_and_pickles() -> None:
    model = Model(BF16)
    averaged = ours.AveragedModel(model, multi_avg_fn=ours.get_ema_multi_avg_fn(0.5), dtype=FP32)
    averaged.update_parameters(model)
    copies = [averaged, copy.deepcopy(averaged), pickle.loads(pickle.dumps(averaged))]
    fill(model, 3)
    for each in copies:
        assert type(each) is ours.AveragedModel
        assert _C.update_parameters(each, model)
        assert_identical(values(each)[:-1], values(averaged)[:-1])


def test_is_torchs_class() -> None:
    averaged = ours.AveragedModel(nn.Linear(2, 2))
    assert isinstance(averaged, torchs.AveragedModel)
    assert averaged(torch.zeros(1, 2)).shape == (1, 2)
    with pytest.raises(AssertionError, match="Only one"):
        ours.AveragedModel(
            nn.Linear(2, 2), None, ours.get_swa_avg_fn(), ours.get_swa_multi_avg_fn()
        )


def test_names() -> None:
    assert importlib.import_module("fusedopt.swa_utils") is fusedopt.swa_utils is ours
    assert sys.modules["fusedopt.swa_utils"] is ours
    assert set(torchs.__all__) == set(ours.__all__)
    assert ours.SWALR is torchs.SWALR and ours.update_bn is torchs.update_bn
    assert ours.PARAM_LIST is torchs.PARAM_LIST
    assert set(dir(torchs)) <= set(dir(ours))
    with pytest.raises(AttributeError):
        ours.no_such_name  # noqa: B018
    assert torch.optim.swa_utils is torchs and not hasattr(torchs, "_Average")


class Counting(ours.AveragedModel):
    """Overrides what torch's method sets and calls."""

    sets = 0

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "n_averaged":
            type(self).sets += 1
        super().__setattr__(name, value)


class Plain(ours.AveragedModel):
    updates = 0

    def update_parameters(self, model: nn.Module) -> None:
        self.updates += 1
        super().update_parameters(model)


class Fixed(ours.AveragedModel):
    @property
    def use_buffers(self) -> bool:  # type: ignore[override]
        return True

    @use_buffers.setter
    def use_buffers(self, value: bool) -> None:
        pass


def test_subclasses() -> None:
    model = nn.BatchNorm1d(3)
    counting = Counting(model)
    before = Counting.sets
    counting.update_parameters(model)
    assert Counting.sets == before + 1
    plain = Plain(model)
    plain.update_parameters(model)
    assert _C.update_parameters(plain, model)
    assert plain.updates == 1
    assert plain.n_averaged == 2
    assert not _C.update_parameters(Fixed(model), model)
    wider = Plain(model)
    wider.extra = nn.Linear(2, 2)  # whose parameters come after the module's
    assert not _C.update_parameters(wider, model)
    wider.update_parameters(model)


def test_hooks_of_buffers() -> None:
    seen = []
    averaged = ours.AveragedModel(model := nn.Linear(2, 2))
    handle = nn.modules.module.register_module_buffer_registration_hook(
        lambda module, name, value: seen.append(name)
    )
    try:
        averaged.update_parameters(model)
    finally:
        handle.remove()
    assert seen == ["n_averaged"]
    assert _C.update_parameters(averaged, model)


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


def digests() -> dict[str, str]:
    """What the averages are, in bits."""
    found = {}
    for function, make in FUNCTIONS.items():
        for dtype in (FP32, FP64, BF16, FP16):
            for wide in (None, FP32):
                model = Model(dtype)
                averaged = ours.AveragedModel(model, **make(ours), dtype=wide)
                for t in range(4):
                    fill(model, t)
                    assert _C.update_parameters(averaged, model)
                data = pickle.dumps([p.detach().double().numpy() for p in averaged.parameters()])
                found[f"{function} {dtype} {wide}"] = hashlib.sha256(data).hexdigest()
    return found


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_instruction_sets(isa: str) -> None:
    if isa not in _C.isa_built() or isa not in _C.isa_detected() or isa == _C.isa():
        pytest.skip(f"no other {isa} here")
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "FUSEDOPT_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == digests()


if __name__ == "__main__":
    print(json.dumps(digests()))
