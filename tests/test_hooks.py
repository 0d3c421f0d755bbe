"""What surrounds the arithmetic of a step: closures, hooks, version counters, names, signatures."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CLASS_CASES, MAIN_CASES, NAMES, Case, over, with_torch
from helpers import Make, make_params, random, set_grads, step, twins
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

import fusedopt
from fusedopt.precision import PRECISION

FLAGS = [{}, {"fused": False}, {"foreach": True}]


@pytest.fixture
def torchs_step_is_patched() -> Iterator[None]:
    """torch puts its hooks around a class's step() when the class is first used."""
    for case in with_torch(CLASS_CASES):
        case.make(make_params(), torch.optim)
    yield


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@over(with_torch(CLASS_CASES), "case")
def test_closure(case: Case, flags: dict[str, bool]) -> None:
    """Called once, with gradients enabled, before anything is read; its value is returned."""
    param = Parameter(random((4,), 0))
    optimizer = case.make([param], **flags)
    calls = []

    def closure() -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = (param * param).sum()
        loss.backward()
        return loss

    start = param.detach().clone()
    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    assert loss.item() == start.square().sum().item()
    assert torch.equal(param.grad, 2 * start)
    assert not torch.equal(param, start)
    assert optimizer.step(closure=closure) is not None
    assert optimizer.step() is None


@over(MAIN_CASES, "case")
def test_closure_may_change_everything(case: Case) -> None:
    """Options, groups and gradients set in the closure are those of this step."""

    def scenario(make: Make) -> Optimizer:
        params = make_params()
        optimizer = make(params[:3])
        step(optimizer, 0)

        def closure() -> float:
            optimizer.param_groups[0]["lr"] = 0.3
            optimizer.add_param_group({"params": params[3:]})
            set_grads(params, 1)
            return 1.0

        optimizer.step(closure)
        return optimizer

    twins(case, scenario)


@pytest.mark.parametrize("mixed", [False, True], ids=["ours", "with_fallback"])
@pytest.mark.parametrize("flags", FLAGS, ids=str)
@over(with_torch(CLASS_CASES), "case")
def test_step_hooks_fire_once(
    case: Case, flags: dict[str, bool], mixed: bool, torchs_step_is_patched: None
) -> None:
    """Instance and global hooks, before and after, in torch's order; the fallback adds none."""
    params = make_params()
    if mixed:
        params.append(Parameter(torch.randn(3, dtype=torch.complex128)))
    optimizer = case.make(params, **flags)
    calls: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda o, a, k: calls.append("global pre")),
        register_optimizer_step_post_hook(lambda o, a, k: calls.append("global post")),
    ]
    try:
        optimizer.register_step_pre_hook(lambda o, a, k: calls.append("pre"))
        optimizer.register_step_post_hook(lambda o, a, k: calls.append("post"))
        set_grads(params, 0)
        optimizer.step(lambda: calls.append("closure"))
    finally:
        for handle in handles:
            handle.remove()
    assert calls == ["global pre", "pre", "closure", "post", "global post"]


@over(CLASS_CASES, "case")
def test_pre_hook_changes_the_arguments(case: Case) -> None:
    optimizer = case.make(make_params())
    set_grads(make_params(), 0)
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: 42), {}))
    assert optimizer.step() == 42


@over(MAIN_CASES, "case")
def test_pre_hook_changes_the_gradients(case: Case) -> None:
    def scenario(make: Make) -> Optimizer:
        params = make_params()
        optimizer = make(params)

        def halve(o: Optimizer, args: object, kwargs: object) -> None:
            for p in params:
                p.grad = p.grad / 2

        optimizer.register_step_pre_hook(halve)
        for t in range(3):
            step(optimizer, t)
        return optimizer

    twins(case, scenario)


@over(MAIN_CASES, "case")
def test_version_counters_move(case: Case) -> None:
    """Parameters and states count their changes, gradients don't have any."""
    params = make_params()
    optimizer = case.make(params)
    step(optimizer, 0)
    states = [s for p in params if p in optimizer.state for s in optimizer.state[p].values()]
    set_grads(params, 1)
    before = [t._version for t in (*params, *states)]
    grads = [p.grad._version for p in params]
    optimizer.step()
    after = [t._version for t in (*params, *states)]
    assert all(a > b for a, b in zip(after, before, strict=True))
    assert [p.grad._version for p in params] == grads


@over(CLASS_CASES, "case")
def test_autograd_notices_the_change(case: Case) -> None:
    param = Parameter(random((4,), 0))
    optimizer = case.make([param])
    loss = (param**3).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@over(CLASS_CASES, "case")
def test_unused_parameters_keep_their_version(case: Case) -> None:
    used, unused = make_params([(3,), (3,)])
    optimizer = case.make([used, unused])
    step(optimizer, 0, [used])
    version = unused._version
    step(optimizer, 1, [used])
    assert unused._version == version


@over(CLASS_CASES, "case")
def test_nothing_requires_grad_afterwards(case: Case) -> None:
    params = make_params()
    optimizer = case.make(params)
    with torch.enable_grad():
        step(optimizer, 0)
    for p in params:
        assert p.is_leaf
        assert p.requires_grad
        assert all(not s.requires_grad for s in optimizer.state.get(p, {}).values())
    assert torch.is_grad_enabled()


@over(CLASS_CASES, "case")
def test_profiler_shows_the_step(case: Case) -> None:
    optimizer = case.make(make_params())
    set_grads(make_params(), 0)
    with torch.profiler.profile() as profile:
        optimizer.step()
    assert f"Optimizer.step#{case.name}.step" in {e.key for e in profile.key_averages()}


def test_other_listeners_see_the_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An observer of C++'s callbacks, and the monitor that record_function itself asks for."""
    optimizer = fusedopt.AdamW(make_params())
    entered = []
    enter = torch.autograd.profiler.record_function.__enter__

    def note(self: torch.autograd.profiler.record_function) -> object:
        entered.append(self.name)
        return enter(self)

    monkeypatch.setattr(torch.autograd.profiler.record_function, "__enter__", note)
    optimizer.step()
    assert entered == []
    observer = torch.profiler.ExecutionTraceObserver()
    observer.register_callback(str(tmp_path / "trace.json"))
    observer.start()
    optimizer.step()
    observer.stop()
    observer.unregister_callback()
    monitor = types.SimpleNamespace(_monitor_singleton=None)
    monkeypatch.setitem(sys.modules, "torch.profiler._cupti_monitor", monitor)
    optimizer.step()
    assert entered == ["Optimizer.step#AdamW.step"]
    monitor._monitor_singleton = object()
    optimizer.step()
    assert entered == 2 * ["Optimizer.step#AdamW.step"]


@pytest.mark.parametrize("module", [fusedopt, torch.optim], ids=["fusedopt", "torch"])
def test_a_subclass_adds_a_hook_in_its_step(module: types.ModuleType) -> None:
    """It is called after the base's step and after its own, which both have torch's wrapper."""
    called: list[str] = []
    module.SGD(make_params())  # the first puts the wrapper around the base's step

    class Own(module.SGD):
        def step(self, closure: None = None) -> None:
            self.register_step_post_hook(lambda *_: called.append("hook"))
            super().step()

        def _optimizer_step_code(self) -> None:
            called.append("code")

    Own(make_params()).step()
    assert called == 2 * ["code", "hook"]


@pytest.mark.parametrize("module", [fusedopt, torch.optim], ids=["fusedopt", "torch"])
def test_a_subclass_overrides_what_the_profiler_looks_at(module: types.ModuleType) -> None:
    called: list[str] = []

    class Own(module.SGD):
        def _optimizer_step_code(self) -> None:
            called.append("code")

    Own(make_params()).step()
    assert called == ["code"]


@pytest.mark.parametrize("module", [fusedopt, torch.optim], ids=["fusedopt", "torch"])
def test_a_dispatch_mode_sees_the_range(module: types.ModuleType) -> None:
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    optimizer = module.SGD(make_params())
    with Watch():
        optimizer.step()
    assert any("_record_function_enter" in name for name in seen)


@pytest.mark.parametrize("module", [fusedopt, torch.optim], ids=["fusedopt", "torch"])
def test_a_hook_from_within_the_closure(module: types.ModuleType) -> None:
    """It is called after the same step, if it is one for afterwards."""
    params = make_params()
    set_grads(params, 0)
    optimizer = module.SGD(params)
    called: list[str] = []

    def closure() -> None:
        optimizer.register_step_pre_hook(lambda *_: called.append("before"))
        optimizer.register_step_post_hook(lambda *_: called.append("after"))

    optimizer.step(closure)
    assert called == ["after"]


@pytest.mark.parametrize("name", [c.name for c in with_torch(CLASS_CASES)])
def test_class_is_a_subclass_with_the_same_signature(name: str) -> None:
    ours, theirs = getattr(fusedopt, name), getattr(torch.optim, name)
    assert issubclass(ours, theirs)
    assert ours is not theirs
    assert ours.__name__ == name
    mine, torchs = (dict(inspect.signature(c).parameters) for c in (ours, theirs))
    for option in ours._added_options:
        added = mine.pop(option)
        assert (added.default, added.kind) == (None, inspect.Parameter.KEYWORD_ONLY)
    for option, default in PRECISION.items():
        added = mine.pop(option)
        assert (added.default, added.kind) == (default, inspect.Parameter.KEYWORD_ONLY)
    added = mine.pop("max_grad_norm")
    assert (added.default, added.kind) == (None, inspect.Parameter.KEYWORD_ONLY)
    as_tuples = [[(p.name, p.default, p.kind) for p in s.values()] for s in (mine, torchs)]
    assert as_tuples[0] == as_tuples[1]


def test_adamw_is_an_adam() -> None:
    assert issubclass(fusedopt.AdamW, fusedopt.Adam)
    assert not issubclass(fusedopt.Adam, fusedopt.AdamW)


def test_every_name_of_torch_optim() -> None:
    public = [n for n in dir(torch.optim) if not n.startswith("_")]
    assert set(public) <= set(dir(fusedopt))
    for name in public:
        ours, theirs = getattr(fusedopt, name), getattr(torch.optim, name)
        if name not in NAMES and name.islower() is False:
            assert ours is theirs, name
    assert fusedopt.lr_scheduler is torch.optim.lr_scheduler
    assert issubclass(fusedopt.swa_utils.AveragedModel, torch.optim.swa_utils.AveragedModel)
    assert fusedopt.LBFGS is torch.optim.LBFGS
    with pytest.raises(AttributeError, match="no_such_name"):
        fusedopt.no_such_name  # noqa: B018


def test_newer_names_of_torch_optim(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that a newer torch adds is there too."""
    monkeypatch.setattr(torch.optim, "Brandnew", object(), raising=False)
    assert fusedopt.Brandnew is torch.optim.Brandnew


@over(CLASS_CASES, "case")
def test_repr_is_torchs(case: Case) -> None:
    assert repr(case.make(make_params())) == repr(case.make(make_params(), torch.optim))


def test_signature_of_a_users_subclass() -> None:
    """A class's own constructor tells what it takes, and torch's what ours takes."""

    class Mine(fusedopt.RMSprop):
        def __init__(self, params: Any, mine: int, *, fused: bool = True) -> None:
            super().__init__(params, fused=fused)

    assert list(inspect.signature(Mine).parameters) == ["params", "mine", "fused"]
    assert Mine([Parameter(torch.ones(1))], 1).defaults["fused"] is True
    assert list(inspect.signature(fusedopt.RMSprop.__init__).parameters)[:3] == [
        "self", "params", "lr",
    ]  # fmt: skip
