"""Where torch's step would call code of a user's class, that code is called with our classes too.

And what only stands for a tensor, a dict or a number isn't taken for one.
"""

from __future__ import annotations

import collections
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from cases import CLASS_CASES, SCALARS, Case, case, over, with_torch
from helpers import kernels, make_params, random, set_grads
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt

STATEFUL = [c for c in (case("SGD-momentum"), *CLASS_CASES) if c.keeps_state]


def outcome(program: Callable[[ModuleType], Any], module: ModuleType) -> Any:
    """What a program returns, or the kind of error that it raises."""
    try:
        return program(module)
    except (TypeError, AttributeError, RuntimeError, ValueError, KeyError, OverflowError) as error:
        return type(error)


def assert_same_outcome(program: Callable[[ModuleType], Any]) -> None:
    """The program does with our classes what it does with torch's."""
    ours, theirs = outcome(program, fusedopt), outcome(program, torch.optim)
    if isinstance(theirs, type):
        assert isinstance(ours, type)
    else:
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def values(params: list[Any]) -> list[list[float]]:
    """The parameters as lists, of whatever class they are."""
    return [torch.Tensor.detach(p).clone().as_subclass(Tensor).tolist() for p in params]


def two(case: Case, module: ModuleType, steps: int = 1) -> tuple[Optimizer, list[Parameter]]:
    """An optimizer over two small parameters, after some steps."""
    params = make_params([(3,), (2,)])
    optimizer = case.make(params, module)
    for t in range(steps):
        set_grads(params, t)
        optimizer.step()
    set_grads(params, 9)
    return optimizer, params


@pytest.mark.parametrize("stand_in", [weakref.proxy, lambda _: Mock(spec=Tensor)])
@pytest.mark.parametrize("entry", ["first state", "step", "lr"])
@over(with_torch(STATEFUL), "case")
def test_objects_that_say_they_are_tensors(case: Case, entry: str, stand_in: Any) -> None:
    """`isinstance` is true for them, and there is no tensor in their memory."""
    if not case.counts_steps and entry == "step":
        return

    def program(module: ModuleType) -> Any:
        optimizer, params = two(case, module)
        state: dict[str, Any] = optimizer.state[params[0]]
        key = next(k for k in state if k not in SCALARS) if entry == "first state" else entry
        where = optimizer.param_groups[0] if entry == "lr" else state
        real = torch.tensor(0.1) if entry == "lr" else state[key]
        where[key] = stand_in(real)
        optimizer.step()
        optimizer.step()
        return values(params)

    assert_same_outcome(program)


@pytest.mark.parametrize("stand_in", [weakref.proxy, lambda _: Mock(spec=Tensor, grad=None)])
def test_parameters_that_say_they_are_tensors(stand_in: Any) -> None:
    """torch's own step takes them as far as it only calls their methods."""

    def program(module: ModuleType) -> Any:
        optimizer, params = two(case("SGD-default"), module)
        optimizer.param_groups[0]["params"].append(stand_in(params[0]))
        optimizer.step()
        optimizer.step()
        return values(params)

    assert_same_outcome(program)


@over([c for c in STATEFUL if "weight_decay" in c.options], "case")
def test_a_weight_decay_that_says_it_is_a_tensor(case: Case) -> None:
    """torch reads foreign memory here; a proxy of a number is a number, and a mock is none."""
    (first, params), (second, others) = two(case, fusedopt), two(case, fusedopt)
    decay = torch.tensor(0.25)
    first.param_groups[0]["weight_decay"] = weakref.proxy(decay)
    second.param_groups[0]["weight_decay"] = 0.25
    for optimizer in (first, second):
        optimizer.step()
    assert values(params) == values(others)
    first.param_groups[0]["weight_decay"] = Mock(spec=Tensor)
    with pytest.raises(TypeError, match="weight_decay"):
        first.step()
    assert values(params) == values(others)


@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
def test_a_mock_in_the_place_of_the_scalers_tensors(name: str) -> None:
    optimizer, params = two(case("Adam-all"), fusedopt)
    before = values(params)
    setattr(optimizer, name, Mock(spec=Tensor))
    with pytest.raises(TypeError, match=name):
        optimizer.step()
    assert values(params) == before


@pytest.mark.parametrize("place", ["group", "state", "params"])
@over(with_torch(CLASS_CASES), "case")
def test_containers_behind_proxies(case: Case, place: str) -> None:
    class Group(dict):  # type: ignore[type-arg]
        pass

    class State(collections.defaultdict):  # type: ignore[type-arg]
        pass

    class Params(list):  # type: ignore[type-arg]
        pass

    def program(module: ModuleType) -> Any:
        optimizer, params = two(case, module)
        if place == "group":
            real: Any = Group(optimizer.param_groups[0])
            optimizer.param_groups[0] = weakref.proxy(real)
        elif place == "state":
            real = State(dict, optimizer.state)
            optimizer.state = weakref.proxy(real)
        else:
            real = Params(params)
            optimizer.param_groups[0]["params"] = weakref.proxy(real)
        optimizer.step()
        optimizer.step()
        return values(params)

    assert_same_outcome(program)


def make_watched(calls: list[str]) -> type[Tensor]:
    """A class that sees every operator, and keeps what `add_` and `addcdiv_` write positive."""

    class Watched(Tensor):
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            calls.append(func.__name__)
            result = super().__torch_function__(func, types, args, kwargs or {})
            if func.__name__ in ("add_", "addcdiv_") and isinstance(args[0], Watched):
                args[0].data.clamp_(min=0)
            return result

    return Watched


@pytest.mark.parametrize("where", ["parameter", "gradient", "state"])
@over(with_torch(STATEFUL), "case")
def test_torch_function_alone(case: Case, where: str) -> None:
    """Sees torch's operators, on whichever tensor it is."""

    def program(module: ModuleType) -> Any:
        calls: list[str] = []
        watched = make_watched(calls)
        param: Tensor = Parameter(random((4,), 1))
        if where == "parameter":
            param = random((4,), 1).as_subclass(watched).requires_grad_()
        optimizer = case.make([param], module)
        for t in range(3):
            param.grad = random((4,), t)
            if where == "gradient":
                param.grad = param.grad.as_subclass(watched)
            state = optimizer.state.get(param, {})
            for key in state if where == "state" else ():
                state[key] = state[key].as_subclass(watched)
            calls.clear()
            optimizer.step()
        return values([param]), bool(calls)

    assert program(fusedopt)[1]
    assert_same_outcome(program)


@pytest.mark.parametrize("name", ["add_", "addcdiv_", "__hash__", "data", "is_sparse", "mul_"])
@over(with_torch(CLASS_CASES), "case")
def test_a_parameter_class_that_overrides_something(case: Case, name: str) -> None:
    calls: list[str] = []

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return getattr(Tensor, name)(self, *args, **kwargs)

    if name in ("data", "is_sparse"):
        override: Any = property(
            lambda self: (calls.append(name), getattr(Tensor, name).__get__(self))[1]
        )
    else:
        override = call
    derived = type("Derived", (Parameter,), {name: override})

    def program(module: ModuleType) -> Any:
        param = derived(random((3,), 0))
        optimizer = case.make([param], module)
        calls.clear()
        for t in range(2):
            param.grad = random((3,), t)
            optimizer.step()
        return values([param]), bool(calls)

    assert_same_outcome(program)
    assert kernels(case.make([derived(random((3,), 0))])) == {"torch"}


@over(with_torch(CLASS_CASES), "case")
def test_a_gradient_that_is_a_property(case: Case) -> None:
    class Derived(Parameter):
        @property
        def grad(self) -> Tensor:
            return torch.ones(3, dtype=torch.float64)

    def program(module: ModuleType) -> Any:
        param = Derived(random((3,), 0))
        optimizer = case.make([param], module)
        optimizer.step()
        optimizer.step()
        return values([param])

    assert_same_outcome(program)


def test_a_class_may_be_changed_between_steps() -> None:
    class Derived(Parameter):
        pass

    param = Derived(torch.zeros(3))
    param.grad = torch.ones(3)
    optimizer = fusedopt.SGD([param], lr=1.0)
    optimizer.step()
    assert kernels(optimizer) == {"sgd"}
    Derived.add_ = lambda self, *_, **__: self.fill_(7.0)  # type: ignore[assignment]
    optimizer.step()
    assert param.tolist() == [7.0, 7.0, 7.0]
    param.__class__ = Parameter
    optimizer.step()
    assert param.tolist() == [6.0, 6.0, 6.0]


def test_a_class_that_overrides_nothing_keeps_the_kernels() -> None:
    class Tagged(Parameter):
        __slots__ = ()
        tag = "a name that Tensor doesn't have"

        def __repr__(self) -> str:
            return "tagged"

        def describe(self) -> str:
            return self.tag

    class Data(Tensor):
        pass

    params: list[Any] = [Tagged(torch.zeros(3)), torch.zeros(2).as_subclass(Data)]
    for param in params:
        param.grad = torch.ones_like(param)
    assert kernels(fusedopt.Adam(params)) == {"adam"}


class Halving(dict):  # type: ignore[type-arg]
    """A group whose learning rate is computed when it is asked for."""

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        return value * 0.5 if key == "lr" else value


class Making(dict):  # type: ignore[type-arg]
    """A group that knows a learning rate without having one."""

    def __missing__(self, key: str) -> float:
        return 0.25


@pytest.mark.parametrize("make", [Halving, Making, collections.UserDict])
@over(with_torch(CLASS_CASES), "case")
def test_a_group_that_is_no_plain_dict(case: Case, make: Callable[[Any], Any]) -> None:
    def program(module: ModuleType) -> Any:
        optimizer, params = two(case, module)
        optimizer.param_groups[0] = make(optimizer.param_groups[0])
        if make is Making:
            del optimizer.param_groups[0]["lr"]
        optimizer.step()
        optimizer.step()
        return values(params)

    assert_same_outcome(program)


@over(with_torch(CLASS_CASES), "case")
def test_a_list_that_iterates_otherwise(case: Case) -> None:
    class First(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter([self[0]])

    def program(module: ModuleType) -> Any:
        optimizer, params = two(case, module)
        optimizer.param_groups[0]["params"] = First(params)
        optimizer.step()
        return values(params)

    assert_same_outcome(program)


@over(with_torch(STATEFUL), "case")
def test_a_states_dict_that_sees_its_readers(case: Case) -> None:
    def program(module: ModuleType) -> Any:
        read: list[str] = []

        class Seen(dict):  # type: ignore[type-arg]
            def __getitem__(self, key: str) -> Any:
                read.append(key)
                return super().__getitem__(key)

            def get(self, key: str, default: Any = None) -> Any:
                read.append(key)
                return super().get(key, default)

        optimizer, params = two(case, module)
        optimizer.state[params[0]] = Seen(optimizer.state[params[0]])
        optimizer.step()
        return values(params), bool(read)

    assert_same_outcome(program)


@pytest.mark.parametrize("name", [c.name for c in with_torch(CLASS_CASES)])
def test_a_float_with_arithmetic_of_its_own(name: str) -> None:
    class Doubling(float):
        def __neg__(self) -> float:
            return -2.0 * float(self)

        def __mul__(self, other: float) -> float:
            return 2.0 * float(self) * other

        def __truediv__(self, other: float) -> float:
            return 2.0 * float(self) / other

        __rmul__ = __mul__

    def program(module: ModuleType) -> Any:
        optimizer, params = two(case(f"{name}-default"), module)
        optimizer.param_groups[0]["lr"] = Doubling(0.1)
        optimizer.step()
        return values(params)

    assert_same_outcome(program)
