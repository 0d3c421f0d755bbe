"""Bad input gives an exception that names the parameter, and nothing has changed then."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import MAIN_CASES, NAMES, SCALARS, Case, case, over, takes, with_torch
from helpers import (
    all_params,
    assert_same,
    assert_unchanged,
    contents,
    kernels,
    make_params,
    random,
    set_grads,
    step,
)
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt

BAD = r"param_groups\[1\]\['params'\]\[0\]"


def two_groups(case: Case, steps: int = 1, **kwargs: Any) -> tuple[Optimizer, Tensor]:
    """An optimizer after some steps; the parameter to spoil is the second group's first."""
    params = make_params([(4, 3), (5,), (6, 2), (7,)])
    named = [(f"layer{i}.weight", p) for i, p in enumerate(params)]
    optimizer = case.make([{"params": named[:2]}, {"params": named[2:]}], **kwargs)
    for t in range(steps):
        step(optimizer, t)
    set_grads(params, 99)
    return optimizer, params[2]


def refused(optimizer: Optimizer, error: type[Exception] | tuple[type[Exception], ...]) -> str:
    """The message of the error that a step raises, having changed nothing."""
    before = contents(optimizer)
    versions = [p._version for g in optimizer.param_groups for p in g["params"]]
    with pytest.raises(error) as raised:
        optimizer.step()
    assert_unchanged(optimizer, before)
    assert [p._version for g in optimizer.param_groups for p in g["params"]] == versions
    return str(raised.value)


def wrong_shape(p: Tensor) -> None:
    p.data = random((6, 3), 1)


def wrong_dimensions(p: Tensor) -> None:
    p.data = random((12,), 1)


def wrong_dtype(p: Tensor) -> None:
    p.data = p.data.float()


def wrong_grad_dtype(p: Tensor) -> None:
    p.grad = None
    p.grad_dtype = None
    p.grad = random(p.shape, 1, torch.bfloat16)


def overlapping(p: Tensor) -> None:
    p.data = random((6, 1), 1).expand(6, 2)


@pytest.mark.parametrize("spoil", [wrong_shape, wrong_dimensions, overlapping])
@pytest.mark.parametrize("steps", [0, 2])
@over(MAIN_CASES, "case")
def test_gradient_does_not_fit(case: Case, steps: int, spoil: Callable[[Tensor], None]) -> None:
    optimizer, param = two_groups(case, steps)
    grad = param.grad
    spoil(param)
    if param.grad is None:
        param.grad = grad
    message = refused(optimizer, RuntimeError)
    assert re.search(BAD, message)
    assert "layer2.weight" in message


@pytest.mark.parametrize("spoil", [wrong_dtype, wrong_grad_dtype])
@pytest.mark.parametrize("steps", [0, 2])
@over(with_torch(MAIN_CASES), "case")
def test_gradient_of_another_dtype(case: Case, steps: int, spoil: Callable[[Tensor], None]) -> None:
    """As torch steps it, where it promotes dtypes; and where its `lerp_` raises an error."""
    ours, param = two_groups(case, steps)
    theirs, twin = two_groups(case, steps, module=torch.optim)
    for p in (param, twin):
        spoil(p)
    ours.step()
    assert kernels(ours) == {case.name.lower()}
    assert param.isfinite().all()
    try:
        theirs.step()
    except RuntimeError:
        return
    for p, q in zip(all_params(ours), all_params(theirs), strict=True):
        # torch has SGD's and Rprop's state in the gradient's dtype.
        tolerance = 1e-6 if spoil is wrong_dtype else 4e-3
        torch.testing.assert_close(p, q, rtol=tolerance, atol=1e-6)
    assert ours.state.get(param, {}).keys() == theirs.state.get(twin, {}).keys()


def test_message_says_what_was_expected() -> None:
    optimizer, param = two_groups(case("Adam-all"))
    param.data = random((6, 3), 1)
    message = refused(optimizer, RuntimeError)
    assert "[6, 3]" in message or "(6, 3)" in message
    assert "[6, 2]" in message or "(6, 2)" in message


def test_message_without_names() -> None:
    params = make_params([(3,), (4,)])
    optimizer = fusedopt.SGD([{"params": params[:1]}, {"params": params[1:]}])
    set_grads(params, 0)
    params[1].data = random((5,), 0)
    assert re.search(BAD, refused(optimizer, RuntimeError))


def tensor_states(optimizer: Optimizer, param: Tensor) -> list[str]:
    """Keys of the tensor states but the step count."""
    return [k for k in optimizer.state[param] if k not in SCALARS]


BAD_TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "shorter": lambda s: s[:-1].clone(),
    "longer": lambda s: torch.cat([s, s]),
    "other_shape": lambda s: s.t().clone() if s.dim() == 2 else s[None].clone(),
    "0-dim": lambda s: s.sum(),
    "dtype": lambda s: s.float(),
    "integer": lambda s: s.long(),
    "complex": lambda s: s + 0j,
    "sparse": lambda s: s.to_sparse(),
    "meta": lambda s: s.to("meta"),
    "overlapping": lambda s: s[:1].clone().expand(s.shape),
}
STATEFUL = [c for c in MAIN_CASES if c.keeps_state]


@pytest.mark.parametrize("kind", BAD_TENSORS)
@over(STATEFUL, "case")
def test_state_tensor_does_not_fit(case: Case, kind: str) -> None:
    """As a foreign checkpoint may bring it: refused, or, where torch takes it, the same result."""
    for key in tensor_states(*two_groups(case)):
        ours, param = two_groups(case)
        theirs, twin = two_groups(case, module=torch.optim)
        for optimizer, p in ((ours, param), (theirs, twin)):
            optimizer.state[p][key] = BAD_TENSORS[kind](optimizer.state[p][key])
        try:
            theirs.step()
            accepted = True
        except RuntimeError:
            accepted = False
        before = contents(ours)
        try:
            ours.step()
        except (RuntimeError, TypeError) as error:
            assert_unchanged(ours, before)
            assert re.search(BAD, str(error))
            assert key in str(error)
        else:
            assert accepted
            assert_same(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [3.0, "x", [1.0], {}])
@over(STATEFUL, "case")
def test_state_is_no_tensor(case: Case, value: Any) -> None:
    optimizer, param = two_groups(case)
    keys = list(optimizer.state[param])
    for key in keys:
        optimizer, param = two_groups(case)
        optimizer.state[param][key] = value
        message = refused(optimizer, TypeError)
        assert re.search(BAD, message)
        assert key in message


@over([c for c in STATEFUL if c.counts_steps], "case")
def test_state_key_is_missing(case: Case) -> None:
    optimizer, param = two_groups(case)
    for key in list(optimizer.state[param]):
        optimizer, param = two_groups(case)
        del optimizer.state[param][key]
        message = refused(optimizer, KeyError)
        assert re.search(BAD, message)
        assert key in message


@pytest.mark.parametrize("value", [3, None, [torch.zeros(3)], "x"])
@over(MAIN_CASES, "case")
def test_state_is_no_dict(case: Case, value: Any) -> None:
    """An error, or (where the rule has no state) no look at it; a crash in no case."""
    params = make_params([(3,), (4,)])
    optimizer = case.make([{"params": params[:1]}, {"params": params[1:]}])
    step(optimizer, 0)
    optimizer.state[params[1]] = value
    start = [p.detach().clone() for p in params]
    try:
        optimizer.step()
    except (TypeError, RuntimeError, AttributeError, KeyError):
        assert all(torch.equal(p, s) for p, s in zip(params, start, strict=True))
    else:
        assert not case.keeps_state


@pytest.mark.parametrize(
    ("case_id", "option", "key"),
    [
        ("Adam-weight_decay", {"amsgrad": True}, "max_exp_avg_sq"),
        ("AdamW-default", {"amsgrad": True}, "max_exp_avg_sq"),
        ("RMSprop-weight_decay", {"momentum": 0.9}, "momentum_buffer"),
        ("RMSprop-weight_decay", {"centered": True}, "grad_avg"),
    ],
)
def test_option_that_needs_new_state(case_id: str, option: dict[str, Any], key: str) -> None:
    """torch raises KeyError then; by that time it has stepped other groups."""
    optimizer, _ = two_groups(case(case_id))
    optimizer.param_groups[1].update(option)
    message = refused(optimizer, KeyError)
    assert key in message
    assert re.search(BAD, message)


@pytest.mark.parametrize("value", ["0.1", None, [0.1], 1j], ids=repr)
@pytest.mark.parametrize("option", ["lr", "weight_decay", "eps", "momentum", "rho"])
@over(MAIN_CASES, "case")
def test_option_of_a_wrong_type(case: Case, option: str, value: Any) -> None:
    optimizer, _ = two_groups(case)
    if option not in case.options:
        pytest.skip(f"{case.name} has no {option}")
    optimizer.param_groups[1][option] = value
    message = refused(optimizer, TypeError)
    assert option in message


@pytest.mark.parametrize("betas", [(0.9,), (0.9, 0.99, 0.999), ("a", 0.9), 0.9, (0.9, None)])
def test_betas_of_a_wrong_form(betas: Any) -> None:
    optimizer, _ = two_groups(case("AdamW-all"))
    optimizer.param_groups[1]["betas"] = betas
    assert "betas" in refused(optimizer, (TypeError, ValueError))


@over(MAIN_CASES, "case")
def test_option_is_missing(case: Case) -> None:
    optimizer, _ = two_groups(case)
    del optimizer.param_groups[1][case.options[0]]
    assert case.options[0] in refused(optimizer, KeyError)


@pytest.mark.parametrize("lr", [torch.ones(2), torch.ones(0)])
@over([c for c in MAIN_CASES if "lr" in c.options], "case")
def test_tensor_lr_of_several_elements(case: Case, lr: Tensor) -> None:
    optimizer, _ = two_groups(case)
    optimizer.param_groups[1]["lr"] = lr
    refused(optimizer, (RuntimeError, ValueError, TypeError))


@pytest.mark.parametrize("value", [None, 3, "p", [torch.zeros(2)]])
@over(MAIN_CASES, "case")
def test_parameter_is_no_tensor(case: Case, value: Any) -> None:
    params = make_params([(3,), (4,)])
    optimizer = case.make(params)
    set_grads(params, 0)
    optimizer.param_groups[0]["params"].append(value)
    start = [p.detach().clone() for p in params]
    with pytest.raises((TypeError, AttributeError)):
        optimizer.step()
    assert all(torch.equal(p, s) for p, s in zip(params, start, strict=True))


@pytest.mark.parametrize("groups", [None, 3, [None], [[]], [{}]], ids=repr)
def test_param_groups_of_a_wrong_type(groups: Any) -> None:
    optimizer = fusedopt.AdamW(make_params())
    optimizer.param_groups = groups
    with pytest.raises((TypeError, KeyError, AttributeError)):
        optimizer.step()


@pytest.mark.parametrize("value", [2.0, "x", torch.ones(2), torch.ones(0)], ids=repr)
@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
def test_scaler_attributes_of_a_wrong_type(name: str, value: Any) -> None:
    """A number may be taken for a tensor; anything else is refused."""
    optimizer, _ = two_groups(case("AdamW-all"))
    setattr(optimizer, name, value)
    if isinstance(value, float):
        optimizer.step()
    else:
        refused(optimizer, (TypeError, RuntimeError, ValueError))


def test_sharp_edges_of_construction() -> None:
    """torch's own checks are there."""
    p = Parameter(torch.zeros(2))
    for name in NAMES:
        cls = getattr(fusedopt, name)
        with pytest.raises(ValueError, match="Invalid learning rate"):
            cls([p], lr=-1.0)
        with pytest.raises(ValueError, match="empty parameter list"):
            cls([])
        with pytest.raises(TypeError, match="iterable of Tensors"):
            cls(p)
        with pytest.raises(TypeError, match="can only optimize Tensors"):
            cls([3])
        if not takes(fusedopt, name, "fused"):
            continue
        with pytest.raises(RuntimeError, match="`fused` and `foreach` cannot be `True` together"):
            cls([p], fused=True, foreach=True)
        with pytest.raises(RuntimeError, match="`fused` does not support `differentiable`"):
            cls([p], fused=True, differentiable=True)
