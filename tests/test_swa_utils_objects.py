"""The objects of swa_utils: functions, state dicts, copies, subclasses, hooks."""

from __future__ import annotations

import copy
import importlib
import pickle
import sys
from typing import Any

import pytest
import torch
from averages import BF16, FP32, FP64, FUNCTIONS, Both, Model, fill, values
from helpers import assert_identical, random
from torch import nn
from torch.nn import Parameter
from torch.optim import swa_utils as torchs

import fusedopt
from fusedopt import _C
from fusedopt import swa_utils as ours


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
