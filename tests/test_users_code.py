"""Programs whose own code torch's step would run, in places where nobody looks for it.

torch then steps the whole optimizer as it is, one parameter after the other: what that code sees,
counts and changes is the same as with torch.optim.
"""

from __future__ import annotations

import sys
import types
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from test_overrides import assert_same_outcome, outcome
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt

Program = Callable[[ModuleType], Any]


def param(*values: Any, grad: Any = None) -> Parameter:
    p = Parameter(torch.tensor(values))
    p.grad = torch.ones_like(p) if grad is None else torch.tensor(grad, dtype=p.dtype)
    return p


def nesterov(cls: type[Optimizer]) -> tuple[Any, Parameter]:
    p = param(1.0)
    return cls([p], lr=0.1, momentum=0.9, nesterov=True), p  # type: ignore[call-arg]


def stepped(optimizer: Optimizer, p: Tensor, steps: int = 1) -> list[Any]:
    for _ in range(steps):
        optimizer.step()
    return p.detach().as_subclass(Tensor).tolist()


# --- Classes of optimizers.


def writes_to_its_group(module: ModuleType) -> Any:
    class Mine(module.SGD):  # type: ignore[name-defined,misc]
        def _init_group(self, group: Any, *rest: Any) -> Any:
            group["calls"] = group.get("calls", 0) + 1
            assert group is self.param_groups[0]
            return super()._init_group(group, *rest)

    optimizer, p = nesterov(Mine)
    return stepped(optimizer, p, 2), optimizer.param_groups[0]["calls"]


def has_slots(module: ModuleType) -> Any:
    class Mine(module.SGD):  # type: ignore[name-defined,misc]
        __slots__ = ("factor",)

        def _init_group(self, group: Any, params: Any, grads: Any, *rest: Any) -> Any:
            result = super()._init_group(group, params, grads, *rest)
            grads[:] = [g * self.factor for g in grads]
            return result

    optimizer, p = nesterov(Mine)
    optimizer.factor = 3.0
    return stepped(optimizer, p)


def is_registered(module: ModuleType) -> Any:
    factors: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()

    class Mine(module.SGD):  # type: ignore[name-defined,misc]
        def _init_group(self, group: Any, params: Any, grads: Any, *rest: Any) -> Any:
            result = super()._init_group(group, params, grads, *rest)
            grads[:] = [g * factors[self] for g in grads]
            return result

    optimizer, p = nesterov(Mine)
    factors[optimizer] = 3.0
    return stepped(optimizer, p)


def deletes_an_attribute(module: ModuleType) -> Any:
    class Mine(module.SGD):  # type: ignore[name-defined,misc]
        def _init_group(self, group: Any, params: Any, grads: Any, *rest: Any) -> Any:
            result = super()._init_group(group, params, grads, *rest)
            if hasattr(self, "once"):
                del self.once
                grads[:] = [g * 10 for g in grads]
            return result

    optimizer, p = nesterov(Mine)
    optimizer.once = 1
    return stepped(optimizer, p, 2)


def adds_a_group_in_the_midst(module: ModuleType) -> Any:
    class Mine(module.SGD):  # type: ignore[name-defined,misc]
        def _init_group(self, group: Any, *rest: Any) -> Any:
            if len(self.param_groups) < 2:
                self.add_param_group({"params": [param(1.0)]})
            return super()._init_group(group, *rest)

    optimizer, p = nesterov(Mine)
    return stepped(optimizer, p), optimizer.param_groups[1]["params"][0].tolist()


def has_attributes_of_our_names(module: ModuleType) -> Any:
    class Mine(module.RMSprop):  # type: ignore[name-defined,misc]
        found_inf = 3  # torch's RMSprop reads no such thing

        def __init__(self, params: Any) -> None:
            super().__init__(params, lr=0.1)
            self._plan: list[Any] = []
            self.kernels = "x"

    p = param(1.0)
    return stepped(Mine([p]), p)


def doubled(original: Any) -> Any:
    def double(self: Any, group: Any, params: Any, grads: Any, *rest: Any) -> Any:
        result = original(self, group, params, grads, *rest)
        grads[:] = [g * 2 for g in grads]
        return result

    return double


def replaces_a_method_of_one_optimizer(module: ModuleType) -> Any:
    p = param(1.0)
    optimizer = module.SGD([p], lr=0.1)
    optimizer.step()
    optimizer._init_group = types.MethodType(doubled(torch.optim.SGD._init_group), optimizer)
    return stepped(optimizer, p)


def replaces_a_method_of_a_class_later(module: ModuleType) -> Any:
    class Mine(module.SGD):  # type: ignore[name-defined,misc]
        pass

    p = param(1.0)
    optimizer = Mine([p], lr=0.1)
    optimizer.step()
    Mine._init_group = doubled(torch.optim.SGD._init_group)
    return stepped(optimizer, p)


def replaces_a_method_of_torchs_class(module: ModuleType) -> Any:
    p = param(1.0)
    optimizer = module.SGD([p], lr=0.1)
    optimizer.step()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "_init_group", doubled(torch.optim.SGD._init_group))
        optimizer.step()
    return stepped(optimizer, p)


def replaces_a_function_of_torchs_module(module: ModuleType) -> Any:
    p = param(1.0)
    optimizer = module.AdamW([p], lr=0.1)
    optimizer.step()
    with pytest.MonkeyPatch.context() as patch:
        functions = sys.modules["torch.optim.adam"]
        patch.setattr(functions, "adam", lambda params, *_, **__: params[0].data.add_(1))
        optimizer.step()
    return stepped(optimizer, p)


def replaces_a_method_of_parameters(module: ModuleType) -> Any:
    p = param(1.0)
    optimizer = module.SGD([p], lr=0.1)
    optimizer.step()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parameter, "add_", lambda self, *a, **k: None, raising=False)
        optimizer.step()
    return stepped(optimizer, p)


def replaces_a_method_of_tensors(module: ModuleType) -> Any:
    p = param(1.0, grad=[50.0])
    optimizer = module.SGD([p], lr=0.1)
    original = Tensor.add_

    def clamped(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        original(self, *args, **kwargs)
        self.data.clamp_(min=0)
        return self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "add_", clamped, raising=False)
        optimizer.step()
    return stepped(optimizer, p)


# --- Groups, states and numbers.


class Warmup(dict):  # type: ignore[type-arg]
    """A group whose learning rate grows each time that it is asked for."""

    calls = 0

    def __getitem__(self, key: str) -> Any:
        if key == "lr":
            self.calls += 1
            return 0.1 * self.calls
        return super().__getitem__(key)


def counts_what_is_asked_of_a_group(module: ModuleType) -> Any:
    optimizer, p = nesterov(module.SGD)
    optimizer.param_groups[0] = Warmup(optimizer.param_groups[0])
    return stepped(optimizer, p, 2)


def counts_beside_a_parameter_without_gradient(module: ModuleType) -> Any:
    p = param(1.0)
    optimizer = module.SGD([p, Parameter(torch.ones(1))], lr=0.1)
    optimizer.param_groups[0] = Warmup(optimizer.param_groups[0])
    return stepped(optimizer, p, 2)


def has_a_read_only_group(module: ModuleType) -> Any:
    optimizer, p = nesterov(module.SGD)
    optimizer.param_groups[0] = types.MappingProxyType(optimizer.param_groups[0])
    return stepped(optimizer, p)


class Only:
    """The least that torch needs of a group."""

    def __init__(self, group: dict[str, Any]) -> None:
        self.group = group

    def __getitem__(self, key: str) -> Any:
        return self.group[key]


def has_a_group_that_can_only_be_asked(module: ModuleType) -> Any:
    p = param(1.0)
    optimizer = module.Adam([p], lr=0.1)
    optimizer.param_groups[0] = Only(optimizer.param_groups[0])
    return stepped(optimizer, p)


def has_groups_in_a_dict(module: ModuleType) -> Any:
    p, q = param(1.0), param(1 + 1j)
    optimizer = module.SGD([p, q], lr=0.1)
    optimizer.param_groups = {0: optimizer.param_groups[0]}.values()
    return stepped(optimizer, p), q.tolist()


def has_read_only_defaults(module: ModuleType) -> Any:
    p = param(1.0)
    optimizer = module.Adagrad([p], lr=0.1)
    optimizer.state.clear()
    optimizer.defaults = types.MappingProxyType(optimizer.defaults)
    optimizer.state[p] = {"step": torch.tensor(0.0), "sum": torch.zeros(1)}
    return stepped(optimizer, p)


class Turning(list):  # type: ignore[type-arg]
    """A list in another order each time."""

    calls = 0

    def __iter__(self) -> Iterator[Any]:
        self.calls += 1
        items = [self[i] for i in range(len(self))]
        return iter(items if self.calls % 2 else items[::-1])


def has_a_list_that_turns(module: ModuleType) -> Any:
    p, q = param(1.0), param(1 + 1j)
    optimizer = module.SGD([p, q], lr=0.1)
    optimizer.param_groups[0]["params"] = Turning([p, q])
    return stepped(optimizer, p), q.tolist()


def iterator(key: str) -> Program:
    """An iterator has its items once: for the next step, and for that one only."""

    def program(module: ModuleType) -> Any:
        p = param(1.0)
        optimizer = module.Adam([p], lr=0.1)
        group = optimizer.param_groups[0]
        if key == "param_groups":
            optimizer.param_groups = iter([group])
        elif key == "params":
            group["params"] = (q for q in [p])
        elif key in ("deque", "set", "dict"):
            make = {"deque": deque, "set": set, "dict": dict.fromkeys}[key]
            group["params"] = make([p])
        else:
            group["betas"] = map(float, ("0.9", "0.99"))
        results = [stepped(optimizer, p)]
        results.append(outcome(lambda _: stepped(optimizer, p), module))
        return [r for r in results if isinstance(r, list)]

    return program


def defaults_of_its_own(module: ModuleType) -> Any:
    p = param(1.0)
    optimizer = module.SGD([p], lr=0.1)
    group: Any = defaultdict(lambda: True, optimizer.param_groups[0])
    del group["maximize"]
    optimizer.param_groups[0] = group
    return stepped(optimizer, p)


class Negated:
    def __neg__(self) -> float:
        return -0.2


class Both(Negated):
    def __float__(self) -> float:
        return 5.0


class Never(float):
    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = float.__hash__


class OfNumpy(np.float32):
    def __neg__(self) -> float:
        return -5.0


def number(key: str, value: Any) -> Program:
    def program(module: ModuleType) -> Any:
        p = param(1.0)
        optimizer = module.SGD([p], lr=0.1)
        optimizer.param_groups[0][key] = value
        return stepped(optimizer, p, 2)

    return program


class Key:
    """Only equal to a name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return self.name == other


def has_a_state_whose_key_only_equals_the_name(module: ModuleType) -> Any:
    results = []
    for cls, name in (("SGD", "momentum_buffer"), ("Adam", "exp_avg"), ("Adam", "step")):
        p = param(1.0)
        optimizer = getattr(module, cls)([p], lr=0.1, **{"momentum": 0.9} if cls == "SGD" else {})
        optimizer.step()
        optimizer.state[p][Key(name)] = optimizer.state[p].pop(name)
        results.append(stepped(optimizer, p))
    return results


PROGRAMS: dict[str, Program] = {
    program.__name__: program
    for program in (
        writes_to_its_group, has_slots, is_registered, deletes_an_attribute,
        adds_a_group_in_the_midst, has_attributes_of_our_names,
        replaces_a_method_of_one_optimizer, replaces_a_method_of_a_class_later,
        replaces_a_method_of_torchs_class, replaces_a_function_of_torchs_module,
        replaces_a_method_of_parameters, replaces_a_method_of_tensors,
        counts_what_is_asked_of_a_group, counts_beside_a_parameter_without_gradient,
        has_a_read_only_group, has_a_group_that_can_only_be_asked, has_groups_in_a_dict,
        has_read_only_defaults, has_a_list_that_turns,
        has_a_state_whose_key_only_equals_the_name,
    )
} | {
    "iterator as param_groups": iterator("param_groups"),
    "iterator as params": iterator("params"),
    "deque as params": iterator("deque"),
    "iterator as betas": iterator("betas"),
    "set as params": iterator("set"),
    "dict as params": iterator("dict"),
    "unsigned number of numpy": number("lr", np.uint8(1)),
    "unsigned tensor": number("lr", torch.tensor(1, dtype=torch.uint8)),
    "defaultdict as group": defaults_of_its_own,
    "__neg__": number("lr", Negated()),
    "__neg__ beside __float__": number("lr", Both()),
    "__ne__": number("weight_decay", Never(0.5)),
    "__neg__ of a numpy.float32": number("lr", OfNumpy(0.1)),
    "fraction": number("lr", Fraction(1, 4)),
    "more than 64 bits": number("lr", 10**30),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_program_does_what_it_does_with_torch(name: str) -> None:
    assert_same_outcome(PROGRAMS[name])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_torchs_device_mode_and_compiler_leave_the_kernels_in_place() -> None:
    """The first only concerns new tensors, the other wraps functions of torch.optim's."""
    p = param(1.0)
    optimizer = fusedopt.AdamW([p])
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))
    with torch.device("cpu"):
        optimizer.step()
        assert {row.kernel for row in fusedopt.explain(optimizer).rows} == {"adamw"}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_finaliser_runs_once() -> None:
    """What stands for an optimizer, where torch steps some of its parameters, is no such object."""
    closed = []

    class Mine(fusedopt.SGD):
        def __del__(self) -> None:
            closed.append(self)

    sparse = Parameter(torch.ones(3, 2))
    sparse.grad = torch.sparse_coo_tensor([[0]], torch.ones(1, 2), (3, 2))
    optimizer = Mine([param(1.0), sparse], lr=0.1)
    optimizer.step()
    assert not closed
