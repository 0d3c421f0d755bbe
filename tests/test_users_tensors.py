"""More programs whose own code torch's step would run: of tensors, and what it sees and does."""

from __future__ import annotations

import types
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from test_overrides import assert_same_outcome
from test_users_code import Program, param, stepped
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode


def own_attribute(of: str) -> Program:
    def program(module: ModuleType) -> Any:
        p = param(1.0, grad=[5.0])
        optimizer = module.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.1)
        optimizer.step()
        if of == "parameter":
            p.add_ = lambda *a, **k: p.data.clamp_(max=0.25)
        elif of == "gradient":
            assert p.grad is not None
            p.grad = p.grad.clone()
            p.grad.add = lambda *a, **k: torch.tensor([100.0])  # type: ignore[method-assign]
        optimizer.state[p] = {}  # looked at anew
        return stepped(optimizer, p)

    return program


class Behind:
    """Comes after Tensor among a class's bases, and is asked for attributes all the same."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        return value * 2 if name == "grad" and value is not None else value


class Mixed(Tensor, Behind):
    pass


def has_a_base_behind_tensor(module: ModuleType) -> Any:
    p = torch.ones(1).as_subclass(Mixed).requires_grad_()
    p.grad = torch.ones(1)
    return stepped(module.SGD([p], lr=0.1), p)


class Delegating:
    """All that a parameter can, without being one."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor, name)


def has_parameters_that_only_act_as_such(module: ModuleType) -> Any:
    p, q = param(1.0), param(1.0)
    optimizer = module.SGD([p], lr=0.1)
    optimizer.param_groups[0]["params"] += [Delegating(q), types.SimpleNamespace(grad=None)]
    return stepped(optimizer, p), q.tolist()


def has_a_tensor_in_the_place_of_the_list(module: ModuleType) -> Any:
    p = param(1.0)
    optimizer = module.SGD([p], lr=0.1)
    optimizer.param_groups[0]["params"] = torch.zeros(2)
    return stepped(optimizer, p)


def runs_under_a_mode(module: ModuleType) -> Any:
    class Project(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if func is Tensor.add_:
                args[0].data.clamp_(min=0)
            return result

    p = param(1.0, grad=[50.0])
    optimizer = module.SGD([p], lr=0.1)
    with Project():
        return stepped(optimizer, p)


def runs_with_forward_derivatives(module: ModuleType) -> Any:
    p = param(1.0)
    with forward_ad.dual_level():
        p.grad = forward_ad.make_dual(torch.ones(1), torch.tensor([3.0]))
        module.SGD([p], lr=0.1).step()
        return forward_ad.unpack_dual(p).tangent.tolist()


# --- What that code sees and does meanwhile.


def acting(action: Callable[[Tensor], Any]) -> Tensor:
    """A parameter that does something each time that it is stepped."""

    class Acting(Tensor):
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = super().__torch_function__(func, types, args, kwargs or {})
            if func is Tensor.add_:
                with torch._C.DisableTorchFunctionSubclass():
                    action(args[0])
            return result

    p = torch.zeros(1).as_subclass(Acting).requires_grad_()
    p.grad = torch.ones(1)
    return p


def follows_another_parameter(module: ModuleType) -> Any:
    q = param(1.0)
    p = acting(lambda own: own.data.copy_(q.data))
    return stepped(module.SGD([q, p], lr=0.5), p)


def takes_itself_from_the_list(module: ModuleType) -> Any:
    a, b = param(1.0), param(1.0)
    p = acting(lambda _: optimizer.param_groups[0]["params"].pop(0))
    optimizer = module.SGD([p, a, b], lr=0.5)
    return stepped(optimizer, a), b.tolist()


def drops_anothers_gradient(module: ModuleType) -> Any:
    a = param(1.0)
    p = acting(lambda _: setattr(a, "grad", None))
    return stepped(module.SGD([p, a], lr=0.5), a)


def sets_the_groups_lr(module: ModuleType) -> Any:
    a, b = param(1.0), param(1.0)
    p = acting(lambda _: optimizer.param_groups[1].update(lr=5.0))
    optimizer = module.SGD([{"params": [p, a]}, {"params": [b]}], lr=0.5)
    return stepped(optimizer, a), b.tolist()


def raises_in_the_midst(module: ModuleType) -> Any:
    def fail(_: Tensor) -> None:
        raise ValueError

    a = param(1.0)
    optimizer = module.SGD([a, acting(fail)], lr=0.5)
    with pytest.raises(ValueError):  # noqa: PT011
        optimizer.step()
    return a.tolist()


PROGRAMS: dict[str, Program] = {
    program.__name__: program
    for program in (
        has_a_base_behind_tensor,
        has_parameters_that_only_act_as_such,
        has_a_tensor_in_the_place_of_the_list,
        runs_under_a_mode,
        runs_with_forward_derivatives,
        follows_another_parameter,
        takes_itself_from_the_list,
        drops_anothers_gradient,
        sets_the_groups_lr,
        raises_in_the_midst,
    )
} | {
    "own attribute of a parameter": own_attribute("parameter"),
    "own attribute of a gradient": own_attribute("gradient"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_program_does_what_it_does_with_torch(name: str) -> None:
    assert_same_outcome(PROGRAMS[name])
