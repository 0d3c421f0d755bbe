"""PyTorch's own list of optimizer configurations and errors, with our classes in it."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from cases import CLASS_CASES, NAMES, takes, with_torch
from helpers import assert_same, random
from torch.nn import Parameter

import fusedopt

common = pytest.importorskip("torch.testing._internal.common_optimizers")
INFOS = {i.optim_cls.__name__: i for i in common.optim_db if i.optim_cls.__name__ in NAMES}


def inputs() -> list[Any]:
    """Each configuration of each class, with the flags for torch's implementations too."""
    found = []
    for name, info in INFOS.items():
        plain = info.optim_inputs_func("cpu")
        flagged = common._get_optim_inputs_including_global_cliquey_kwargs("cpu", None, info)
        for i, each in enumerate([*plain, *flagged]):
            label = f"{name}-{i}-{each.desc}".replace(" ", "_")
            found.append(pytest.param(name, each, id=label))
    return found


def errors() -> list[Any]:
    """Each error of each class."""
    found = []
    for name, info in INFOS.items():
        for i, each in enumerate(info.optim_error_inputs_func("cpu", torch.float32)):
            label = f"{name}-{i}-{each.optimizer_error_input.desc}".replace(" ", "_")
            found.append(pytest.param(name, each, id=label))
    return found


def test_all_classes_are_in_it() -> None:
    assert set(INFOS) == {case.name for case in with_torch(CLASS_CASES)}


def train(module: Any, name: str, kwargs: dict[str, Any], dtype: torch.dtype) -> Any:
    """A few steps on a small problem; the last with a gradient of zeros, as in torch's tests."""
    weight = Parameter(random((2, 3), 0, dtype))
    bias = Parameter(random((2,), 1, dtype))
    x = random((3,), 2, dtype)
    optimizer = getattr(module, name)([weight, bias], **copy.deepcopy(kwargs))
    for t in range(8):
        optimizer.zero_grad()
        (weight.mv(x) + bias).square().sum().backward()
        if t == 5:
            bias.grad = None
        optimizer.step()
    weight.grad.zero_()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize(("name", "optim_input"), inputs())
def test_configuration(name: str, optim_input: Any) -> None:
    """Every configuration gives what torch's for-loop gives."""
    kwargs = dict(optim_input.kwargs)
    flags = {k: kwargs.pop(k) for k in ("foreach", "fused", "differentiable") if k in kwargs}
    if flags.get("differentiable"):
        pytest.skip("steps on leaves; test_fallback has it")
    if not takes(torch.optim, name, "fused"):
        flags.pop("fused", None)
    tensor_lr = isinstance(kwargs.get("lr"), torch.Tensor)
    if tensor_lr and flags.get("foreach") and name == "Adam":
        pytest.skip("torch refuses a tensor lr with foreach")
    ours = train(fusedopt, name, {**kwargs, **flags}, torch.float64)
    theirs = train(torch.optim, name, kwargs, torch.float64)
    for group in theirs.param_groups:
        group["differentiable"] = ours.param_groups[0]["differentiable"]
    assert_same(ours, theirs)


@pytest.mark.parametrize(("name", "error_input"), errors())
def test_error(name: str, error_input: Any) -> None:
    """Every error is raised, with torch's message."""
    spoiled = error_input.optimizer_error_input
    params = spoiled.params
    if params is None:
        params = [Parameter(torch.randn(2, 3)), Parameter(torch.randn(3))]

    def trigger() -> None:
        optimizer = getattr(fusedopt, name)(params, **spoiled.kwargs)
        if error_input.error_on is common.OptimizerErrorEnum.STEP_ERROR:
            optimizer.step()

    if issubclass(error_input.error_type, Warning):
        with pytest.warns(error_input.error_type, match=error_input.error_regex):
            trigger()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(error_input.error_type, match=error_input.error_regex):
            trigger()


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("name", INFOS)
def test_training_with_the_listed_schedulers(name: str, index: int) -> None:
    """PyTorch's scheduler combinations make the loss smaller, as its own test demands."""
    combinations = INFOS[name].scheduler_inputs
    if index >= len(combinations):
        pytest.skip("no more combinations")
    torch.manual_seed(0)
    weight, bias = Parameter(torch.randn(10, 5)), Parameter(torch.randn(10))
    x = torch.randn(5)
    optimizer = getattr(fusedopt, name)([weight, bias], lr=0.01)
    schedulers = [make(optimizer) for make in combinations[index]]

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (weight.mv(x) + bias).square().sum()
        loss.backward()
        return loss

    start = closure().item()
    for _ in range(20):
        loss = optimizer.step(closure)
        for scheduler in schedulers:
            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(loss.detach()) if plateau else scheduler.step()
    assert closure().item() < start
