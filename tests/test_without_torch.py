"""Optimizers that torch.optim doesn't have: constructors, and errors where no kernel steps."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CLASS_CASES, NAMES, Case, over
from helpers import (
    assert_identical,
    assert_unchanged,
    contents,
    make_params,
    random,
    set_grads,
)
from torch import Tensor
from torch.nn import Parameter

import fusedopt
from fusedopt.optimizer import FusedOptimizer

OWN = [case for case in CLASS_CASES if not case.has_fallback]


@over(OWN, "case")
def test_is_no_class_of_torchs(case: Case) -> None:
    assert case.name in fusedopt.__all__
    assert isinstance(case.make(make_params()), torch.optim.Optimizer)


def test_each_class_has_the_kernels_of_its_name() -> None:
    """The tests' cases come from the table, so that of a class without an entry there is none."""
    ours = (cls for cls in vars(fusedopt).values() if isinstance(cls, type))
    kernels = {cls.__name__: cls._kernels for cls in ours if issubclass(cls, FusedOptimizer)}
    assert kernels == {name: name for name in NAMES}


@over(OWN, "case")
def test_a_learning_rate_beyond_the_dtype(case: Case) -> None:
    """The rule's `valid` says so, which for other optimizers is compared with torch's errors."""
    params = make_params([(3,), (2,)], torch.float32)
    optimizer = case.make([{"params": params[:1]}, {"params": params[1:]}])
    set_grads(params, 0)
    optimizer.step()
    optimizer.param_groups[1].update(lr=1e39, weight_decay=0.0)
    before = contents(optimizer)
    with pytest.raises(RuntimeError, match=r"param_groups\[1\].*lr 1e\+39"):
        optimizer.step()
    assert_unchanged(optimizer, before)


def test_lions_defaults() -> None:
    assert fusedopt.Lion(make_params()).defaults == {
        "lr": 1e-4,
        "betas": (0.9, 0.99),
        "weight_decay": 0.0,
        "maximize": False,
        "capturable": False,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "learning rate"),
        ({"lr": float("nan")}, "learning rate"),
        ({"lr": torch.ones(2)}, "1-element"),
        ({"betas": (1.0, 0.9)}, "index 0"),
        ({"betas": (0.9, -0.1)}, "index 1"),
        ({"weight_decay": -0.1}, "weight_decay"),
    ],
    ids=str,
)
def test_lions_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fusedopt.Lion(make_params(), **options)


def sparse(values: Tensor) -> Parameter:
    param = Parameter(values)
    param.grad = torch.ones_like(values).to_sparse()
    return param


def complex_numbers(values: Tensor) -> Parameter:
    param = Parameter(torch.complex(values, values))
    param.grad = torch.ones_like(param)
    return param


def expanded(values: Tensor) -> Parameter:
    param = Parameter(values[:1].expand(values.shape))
    param.grad = torch.ones_like(values)
    return param


@pytest.mark.parametrize("make", [sparse, complex_numbers, expanded])
@over(OWN, "case")
def test_what_no_kernel_steps(case: Case, make: Callable[[Tensor], Parameter]) -> None:
    """An error that names the parameter and says why, and nothing has moved."""
    params = make_params([(3,), (2,)])
    optimizer = case.make([{"params": params}, {"params": [make(random((3,), 5))]}])
    set_grads(params, 0)
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match=r"param_groups\[1\]\['params'\]\[0\]"):
        optimizer.step()
    assert_identical([p.detach() for p in params], before)
    assert not any(optimizer.state.values())
    kernels = [row.kernel for row in fusedopt.explain(optimizer).rows]
    assert kernels == [case.name.lower(), "none"]


@over(OWN, "case")
def test_under_a_mode(case: Case) -> None:
    """Code of the user's would run in torch's step, and there is none."""
    optimizer = case.make(params := make_params())
    set_grads(params, 0)

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kw: Any = None) -> Any:
            return func(*args, **(kw or {}))

    with Mode(), pytest.raises(RuntimeError, match="kernels only"):
        optimizer.step()
    assert not any(optimizer.state.values())


@over(OWN, "case")
def test_a_users_class(case: Case) -> None:
    class Adding(Parameter):
        def add_(self, *args: Any, **kwargs: Any) -> Tensor:
            return super().add_(*args, **kwargs)

    params = [*make_params([(3,)]), Adding(random((2,), 1))]
    optimizer = case.make(params)
    set_grads(params, 0)
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match="kernels only.*Adding overrides add_"):
        optimizer.step()
    assert all(map(torch.equal, params, before))
    assert not any(optimizer.state.values())


@over(OWN, "case")
def test_copies_and_checkpoints_go_on(case: Case) -> None:
    optimizer = case.make(params := make_params())
    set_grads(params, 0)
    optimizer.step()
    twins = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    loaded = case.make([Parameter(p.detach().clone()) for p in params])
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each in (optimizer, *twins, loaded):
        mine = each.param_groups[0]["params"]
        set_grads(mine, 1)
        each.step()
        assert_identical([p.detach() for p in mine], [p.detach() for p in params])


def test_a_schedule_and_a_scaler() -> None:
    optimizer = fusedopt.Lion([param := Parameter(torch.zeros(2))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    for grad in ([1.0, -1.0], [torch.inf, 1.0], [1.0, -1.0]):
        param.grad = 4 * torch.tensor(grad)
        scaler.step(optimizer)
        scaler.update(4.0)
        scheduler.step()
    assert param.tolist() == [-0.625, 0.625]
