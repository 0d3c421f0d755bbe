"""zero_grad: what torch.optim's does, by one call into C++."""

from __future__ import annotations

import collections
import gc
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CLASS_CASES, Case, over
from helpers import assert_identical, make_params, set_grads
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

import fusedopt
from fusedopt import _C
from fusedopt.optimizer import FusedOptimizer


def fast(optimizer: Any, set_to_none: bool = True) -> bool:
    """Whether our own code does it."""
    return _C.zero_grad(optimizer, FusedOptimizer, set_to_none)


def both(params: Callable[[], Any] = make_params, **options: Any) -> list[Any]:
    """torch's optimizer and ours."""
    return [m.SGD(params(), lr=0.1, **options) for m in (torch.optim, fusedopt)]


def grads(optimizer: Any) -> list[Any]:
    """All gradients, what they are and how often they were written."""
    return [
        g if g is None else (g.to_dense().tolist(), g._version, g.requires_grad, g.grad_fn, g.dtype)
        for group in optimizer.param_groups
        for g in (p.grad for p in group["params"])
    ]


@over(CLASS_CASES, "case")
@pytest.mark.parametrize("set_to_none", [True, False])
def test_all_optimizers(case: Case, set_to_none: bool) -> None:
    optimizer = case.make(params := make_params())
    set_grads(params[:-1], 0)
    kept = [p.grad for p in params]
    assert optimizer.zero_grad(set_to_none) is None
    if set_to_none:
        assert [p.grad for p in params] == [None] * len(params)
        return
    for p, before in zip(params, kept, strict=True):
        assert p.grad is before
    assert all(not p.grad.any() and p.grad._version == 1 for p in params[:-1])
    assert params[-1].grad is None


def test_default_is_none() -> None:
    optimizer = fusedopt.SGD(params := make_params(), lr=0.1)
    set_grads(params, 0)
    optimizer.zero_grad()
    assert grads(optimizer) == [None] * len(params)
    optimizer.zero_grad()
    for set_to_none in (0, 1, None, "yes"):
        set_grads(params, 0)
        optimizer.zero_grad(set_to_none=set_to_none)  # type: ignore[arg-type]
        assert (params[0].grad is None) is bool(set_to_none)


def test_groups() -> None:
    """All of them, and those that are added later."""
    optimizers = both(lambda: [{"params": make_params()}, {"params": make_params()}])
    for optimizer in optimizers:
        optimizer.add_param_group({"params": make_params()})
        optimizer.param_groups[1]["params"] = tuple(optimizer.param_groups[1]["params"])
        for group in optimizer.param_groups:
            set_grads(group["params"], 1)
        if optimizer is optimizers[1]:
            assert fast(optimizer, False)
        optimizer.zero_grad(False)
    assert grads(optimizers[0])[0][0] == grads(optimizers[1])[0][0]
    assert fast(optimizers[1])
    assert set(grads(optimizers[1])) == {None}


KINDS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "requires_grad": (lambda g: g.requires_grad_(), True),
    "grad_fn": (lambda g: g.requires_grad_() * 2, False),
    "transposed": (lambda g: g.t().contiguous().t(), True),
    "sliced": (lambda g: torch.stack([g, g], 2)[:, :, 0], False),
    "expanded": (lambda g: g[0].clone().expand_as(g), False),
    "sparse": (lambda g: g.to_sparse(), False),
    "subclass": (lambda g: g.as_subclass(type("Subclass", (Tensor,), {})), False),
    "float16": (lambda g: g.half(), True),
}


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("foreach", [None, True])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_gradients(kind: str, foreach: bool | None, set_to_none: bool) -> None:
    make, is_fast = KINDS[kind]
    found = []
    for optimizer in both(lambda: make_params([(4, 5)] * 2), foreach=foreach):
        p = optimizer.param_groups[0]["params"][0]
        if kind == "float16":
            p.grad_dtype = None
        p.grad = make(torch.ones(4, 5, dtype=torch.float16 if kind == "float16" else torch.float64))
        if isinstance(optimizer, FusedOptimizer):
            if not (is_fast or set_to_none):
                before = grads(optimizer)
                assert not fast(optimizer, False)
                assert grads(optimizer) == before
            else:
                assert fast(optimizer, set_to_none)
        optimizer.zero_grad(set_to_none)
        if not (is_fast and isinstance(optimizer, FusedOptimizer)) or set_to_none:
            found.append(grads(optimizer))
        else:
            (values, version, *rest), second = grads(optimizer)
            found.append([(values, version - 1, *rest), second])  # zeroed twice
    assert found[0] == found[1]


def test_a_view_that_may_not_be_written() -> None:
    """As of a leaf that requires a gradient: torch refuses, and nothing is zeroed."""
    for optimizer in both(lambda: [Parameter(torch.ones(3))]):
        leaf = torch.ones(6, requires_grad=True)
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0].grad = leaf[:3]
        with pytest.raises(RuntimeError, match="no_grad mode"):
            optimizer.zero_grad(False)
        assert_identical(leaf.detach(), torch.ones(6))


def test_large_gradients() -> None:
    p = Parameter(torch.zeros(1_100_000))
    optimizer = fusedopt.SGD([p, q := Parameter(torch.zeros(3))], lr=0.1)
    for x in (p, q):
        x.grad = torch.ones_like(x)
    assert fast(optimizer, False)
    assert not p.grad.any() and not q.grad.any()
    assert p.grad._version == q.grad._version == 1


def test_one_gradient_for_two() -> None:
    found = []
    for optimizer in both(lambda: make_params([(3,), (3,)])):
        first, second = optimizer.param_groups[0]["params"]
        first.grad = second.grad = torch.ones(3, dtype=torch.float64)
        optimizer.zero_grad(False)
        found.append(grads(optimizer))
    assert found[0] == found[1]


def test_lazily_copied_gradient() -> None:
    optimizer = fusedopt.SGD([p := Parameter(torch.zeros(3))], lr=0.1)
    kept = torch.ones(3)
    p.grad = kept._lazy_clone()
    assert fast(optimizer, False)
    assert_identical(kept, torch.ones(3))
    assert not p.grad.any()


def test_warnings_are_torchs() -> None:
    """Of a parameter that is no leaf any more: reading its gradient warns."""
    for optimizer in both(lambda: [Parameter(torch.ones(3))]):
        optimizer.param_groups[0]["params"] = [torch.ones(3, requires_grad=True) * 2]
        with pytest.warns(UserWarning, match="not a leaf"):
            optimizer.zero_grad()


class Group(dict):
    """Whose items somebody counts."""

    asked = 0

    def __getitem__(self, key: str) -> Any:
        type(self).asked += 1
        return super().__getitem__(key)


def test_odd_groups_are_torchs() -> None:
    for odd in (Group, collections.OrderedDict):
        optimizer = fusedopt.SGD(params := make_params(), lr=0.1)
        optimizer.param_groups[0] = odd(optimizer.param_groups[0])
        set_grads(params, 0)
        assert not fast(optimizer)
        optimizer.zero_grad()
        assert all(p.grad is None for p in params)
    assert Group.asked > 0
    optimizer = fusedopt.SGD(params := make_params(), lr=0.1)
    set_grads(params, 0)
    optimizer.param_groups[0]["params"] = dict.fromkeys(params)
    assert not fast(optimizer)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)
    del optimizer.param_groups[0]["params"]
    with pytest.raises(KeyError):
        optimizer.zero_grad()


def test_nothing_is_done_half() -> None:
    """Where one is torch's, all are."""
    params = make_params()
    optimizer = fusedopt.SGD(params, lr=0.1)
    set_grads(params, 0)
    optimizer.param_groups[0]["params"].append(None)
    assert not fast(optimizer)
    assert not fast(optimizer, False)
    assert all(p.grad.any() for p in params)
    with pytest.raises(AttributeError):
        optimizer.zero_grad()


class Watching(Parameter):
    """Sees its gradient being set."""

    sets = 0

    @property
    def grad(self) -> Any:  # type: ignore[override]
        return Tensor.grad.__get__(self)

    @grad.setter
    def grad(self, value: Any) -> None:
        type(self).sets += 1
        Tensor.grad.__set__(self, value)


def test_subclasses_of_tensor_are_torchs() -> None:
    optimizer = fusedopt.SGD([p := Watching(torch.ones(3))], lr=0.1)
    p.grad = torch.ones(3)
    before = Watching.sets
    optimizer.zero_grad()
    assert Watching.sets == before + 1
    assert p.grad is None


def test_what_an_object_calls_grad() -> None:
    """In its dict, where Tensor's attribute hides it."""
    optimizer = fusedopt.SGD([p := Parameter(torch.ones(3))], lr=0.1)
    p.__dict__["grad"] = 5
    p.grad = torch.ones(3)
    assert fast(optimizer)
    assert p.grad is None
    assert p.__dict__["grad"] == 5


def test_replaced_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = fusedopt.SGD(params := make_params(), lr=0.1)
    calls = []
    for owner, name in (
        (torch.optim.Optimizer, "zero_grad"),
        (torch.optim.SGD, "zero_grad"),
        (Tensor, "zero_"),
        (torch, "_foreach_zero_"),
        (torch.autograd.profiler, "record_function"),
    ):
        original = getattr(owner, name)

        def replacement(*args: Any, _call: Any = original, _name: str = name, **kw: Any) -> Any:
            calls.append(_name)
            return _call(*args, **kw)

        monkeypatch.setattr(owner, name, replacement, raising=False)
        set_grads(params, 0)
        assert not fast(optimizer, False)
        optimizer.zero_grad(False)
        assert (name in calls) is (name != "_foreach_zero_")
        monkeypatch.undo()
        assert fast(optimizer)


class Mine(fusedopt.AdamW):
    calls = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.calls += 1
        super().zero_grad(set_to_none)


class Groups(fusedopt.SGD):
    """Has a property in the place of the list."""

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.groups

    @param_groups.setter
    def param_groups(self, value: Any) -> None:
        self.groups = value


class Beside:
    """Whose method stands between ours and torch's."""

    calls = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        type(self).calls += 1
        super().zero_grad(set_to_none)  # type: ignore[misc]


def test_subclasses_of_optimizers() -> None:
    optimizer = Mine(params := make_params())
    set_grads(params, 0)
    optimizer.zero_grad()
    assert optimizer.calls == 1
    assert fast(optimizer)
    assert params[0].grad is None
    optimizer = Groups(params, lr=0.1)
    set_grads(params, 0)
    assert not fast(optimizer)
    optimizer.zero_grad()
    assert params[0].grad is None
    between = type("Between", (FusedOptimizer, Beside, torch.optim.SGD), {"_kernels": "SGD"})
    optimizer = between(params, lr=0.1)
    set_grads(params, 0)
    assert not fast(optimizer)
    optimizer.zero_grad()
    assert between.calls == 1
    assert params[0].grad is None


def test_profiler_sees_it() -> None:
    optimizer = fusedopt.SGD(params := make_params(), lr=0.1)
    set_grads(params, 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.zero_grad()
    assert "Optimizer.zero_grad#SGD.zero_grad" in {event.key for event in profile.key_averages()}


def test_name_for_the_profiler() -> None:
    """Which torch makes anew where it is missing."""
    optimizer = fusedopt.SGD(make_params(), lr=0.1)
    del optimizer.__dict__["_zero_grad_profile_name"]
    assert not fast(optimizer)
    optimizer.zero_grad()
    assert fast(optimizer)


def test_modes_are_torchs() -> None:
    class Mode(TorchDispatchMode):
        seen: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    optimizer = fusedopt.SGD(params := make_params(), lr=0.1)
    set_grads(params, 0)
    with Mode():
        optimizer.zero_grad(False)
    assert any("zero_" in name for name in Mode.seen)


def test_finalisers_see_all_dropped() -> None:
    """They may do anything, also step, and drop parameters."""
    params = make_params([(3,)] * 50)
    optimizer = fusedopt.SGD(params, lr=0.1, momentum=0.9)
    set_grads(params, 0)
    seen = []

    def gone(_: Any) -> None:
        seen.append(sum(p.grad is not None for p in params))
        optimizer.param_groups[0]["params"].clear()
        optimizer.zero_grad()
        optimizer.step()
        gc.collect()

    kept = weakref.ref(params[7].grad, gone)
    optimizer.zero_grad()
    assert seen == [0]
    assert kept() is None


def test_gradients_that_are_kept() -> None:
    optimizer = fusedopt.SGD(params := make_params(), lr=0.1)
    set_grads(params, 0)
    kept = [p.grad for p in params]
    before = [g.clone() for g in kept]
    optimizer.zero_grad()
    assert_identical(kept, before)


def test_threads() -> None:
    """A mistake of the user's; it may mix up gradients, but never crash."""
    params = make_params([(3,)] * 20)
    optimizer = fusedopt.SGD(params, lr=0.1)

    def many() -> None:
        for t in range(100):
            set_grads(params, t)
            optimizer.zero_grad(t % 2 == 0)

    threads = [threading.Thread(target=many) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


def test_training_goes_on() -> None:
    """backward() makes new gradients where they were dropped, and adds to those that are zero."""
    for set_to_none in (True, False):
        results = []
        for optimizer in both(lambda: [Parameter(torch.ones(3))], momentum=0.9):
            p = optimizer.param_groups[0]["params"][0]
            for t in range(4):
                optimizer.zero_grad(set_to_none)
                (p * p * t).sum().backward()
                optimizer.step()
            results.append(p.detach())
        torch.testing.assert_close(results[1], results[0])


def test_compiled_code() -> None:
    optimizer = fusedopt.SGD(params := make_params(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(optimizer.zero_grad, backend="eager")
        for set_to_none in (True, False, True):
            set_grads(params, 0)
            compiled(set_to_none)
            assert all(p.grad is None or not p.grad.any() for p in params)
    assert params[0].grad is None
