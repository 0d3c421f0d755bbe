"""The options of how numbers are stored: per group, changed between steps, and what is refused."""

from __future__ import annotations

import copy
from collections import UserDict, UserList, deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_identical, assert_unchanged, contents, kernels
from test_precision import HALVES, NAMES, ROUNDED, make_params, run, set_grads, values
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.nn import Parameter

import fusedopt


def test_options_of_groups() -> None:
    """Norms with float32 state, the rest rounded; changed between groups and between steps."""
    weights, norms = make_params(shapes=((40, 5),))[0], make_params(shapes=((30,),))[0]
    optimizer = fusedopt.AdamW(
        [
            {"params": [weights], "stochastic_rounding": True, "seed": 3},
            {"params": [norms], "state_dtype": torch.float32},
        ]
    )
    run(optimizer)
    assert optimizer.state[weights]["exp_avg"].dtype == torch.bfloat16
    assert optimizer.state[norms]["exp_avg"].dtype == torch.float32
    rows = {row.precision for row in fusedopt.explain(optimizer).rows}
    assert rows == {"stochastic_rounding", "state_dtype=float32"}
    for text in ("stochastic_rounding: True", "seed: 3", "state_dtype: torch.float32"):
        assert text in repr(optimizer)
    assert "stochastic_rounding" not in repr(fusedopt.AdamW(make_params()))
    assert (
        "stochastic_rounding" not in fusedopt.AdamW(make_params()).state_dict()["param_groups"][0]
    )
    # On in the midst: what is missing is made.
    optimizer.param_groups[1]["master_weights"] = True
    run(optimizer, 2, first=3)
    assert optimizer.state[norms]["param_remainder"].dtype == torch.int16
    assert "param_remainder" not in optimizer.state[weights]
    sgd = run(fusedopt.SGD(make_params(), lr=0.1, momentum=0.9))
    assert "step" not in sgd.state[sgd.param_groups[0]["params"][0]]
    momentum = [sgd.state[p]["momentum_buffer"].clone() for p in sgd.param_groups[0]["params"]]
    sgd.param_groups[0]["stochastic_rounding"] = True
    run(sgd, 1, first=3)
    for p, before in zip(sgd.param_groups[0]["params"], momentum, strict=True):
        assert sgd.state[p]["step"] == 1
        change = sgd.state[p]["momentum_buffer"].float() - 0.9 * before.float() - p.grad.float()
        assert p.numel() == 0 or change.abs().max() < 0.05  # no first step, which would drop it


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"stochastic_rounding": 1}, TypeError, "stochastic_rounding"),
        ({"master_weights": "yes"}, TypeError, "master_weights"),
        ({"state_dtype": torch.float16}, ValueError, "state_dtype"),
        ({"state_dtype": "bfloat16"}, ValueError, "state_dtype"),
        ({"stochastic_rounding": True, "seed": 1.5}, TypeError, "seed"),
        ({"stochastic_rounding": True, "fused": False}, ValueError, "stochastic_rounding"),
        ({"state_dtype": torch.float32, "differentiable": True}, ValueError, "state_dtype"),
    ],
)
def test_what_constructors_refuse(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        fusedopt.AdamW(make_params(), **options)
    options = dict(options)
    with pytest.raises(error, match=text):
        fusedopt.AdamW([{"params": make_params(), **options}])
    optimizer = fusedopt.AdamW(make_params())
    with pytest.raises(error, match=text):
        optimizer.add_param_group({"params": make_params(), **options})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("options", "dtype", "text"),
    [
        (ROUNDED, torch.float16, "stochastic_rounding=True is for bfloat16"),
        ({"master_weights": True}, torch.float32, "master_weights=True is for bfloat16"),
        ({"master_weights": True}, torch.float16, "master_weights=True is for bfloat16"),
        ({"state_dtype": torch.float32}, torch.complex64, "state_dtype=float32"),
    ],
)
def test_what_steps_refuse(options: dict[str, Any], dtype: torch.dtype, text: str) -> None:
    """Before anything changes, and naming the parameter; nothing is left to torch silently."""
    params = [*make_params(shapes=((3,), (4, 5))), Parameter(torch.ones(3).to(dtype))]
    optimizer = fusedopt.AdamW(params, **options)
    set_grads(optimizer, 0)
    before = contents(optimizer)
    with pytest.raises(RuntimeError, match=text) as error:
        optimizer.step()
    assert_unchanged(optimizer, before)
    assert "param_groups[0]['params'][2]" in str(error.value)


@pytest.mark.parametrize("options", [ROUNDED, HALVES])
def test_torchs_step_is_refused(options: dict[str, Any]) -> None:
    optimizer = fusedopt.AdamW(make_params(shapes=((3,),)), **options)
    optimizer.param_groups[0]["fused"] = False
    set_grads(optimizer, 0)
    before = contents(optimizer)
    with pytest.raises(RuntimeError, match="fused=False"):
        optimizer.step()
    assert_unchanged(optimizer, before)
    del optimizer.param_groups[0]["fused"]
    optimizer.param_groups[0]["state_dtype"] = torch.int8
    with pytest.raises(ValueError, match="state_dtype"):
        optimizer.step()


def test_a_wrong_remainder() -> None:
    p = make_params(shapes=((3, 4),))[0]
    optimizer = run(fusedopt.AdamW([p], **HALVES))
    for wrong in (torch.zeros(3, 4), torch.zeros(12, dtype=torch.int16), 3):
        optimizer.state[p]["param_remainder"] = wrong
        with pytest.raises((RuntimeError, TypeError), match="param_remainder"):
            optimizer.step()
    optimizer.state[p]["param_remainder"] = torch.zeros(3, 8, dtype=torch.int16)[:, ::2]
    optimizer.step()
    assert kernels(optimizer) == {"adamw"}


@pytest.mark.parametrize("name", NAMES)
def test_state_dtype_taken_back(name: str) -> None:
    """State that is there stays as it is, and is stepped, also where it is looked at anew."""
    optimizer = run(getattr(fusedopt, name)(make_params(), lr=0.01, state_dtype=torch.float32))
    optimizer.param_groups[0]["state_dtype"] = None
    run(optimizer, 1, first=3)
    other = copy.deepcopy(optimizer)
    for p in optimizer.param_groups[0]["params"]:
        p.data = p.data.clone()
    run(optimizer, 1, first=4)
    assert kernels(optimizer) == {name.lower()}
    run(other, 1, first=4)
    assert_identical(values(other), values(optimizer))


@pytest.mark.parametrize(
    ("value", "dtype"), [(0.3, torch.bfloat16), (1e-8, torch.float16), (0.3, torch.float32)]
)
def test_state_made_by_the_constructor(value: float, dtype: torch.dtype) -> None:
    """It is the option's value in its own dtype, not what the parameter's makes of it."""
    wanted = torch.float32 if dtype != torch.float32 else torch.bfloat16
    p = Parameter(torch.ones(3, 4, dtype=dtype).t())
    optimizer = fusedopt.Adagrad([p], initial_accumulator_value=value, state_dtype=wanted)
    made = optimizer.state[p]["sum"]
    assert made.stride() == p.stride()
    assert torch.equal(made, torch.full((4, 3), value, dtype=wanted))


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_by_the_keys_that_are_there(name: str, flatten: bool) -> None:
    """torch.distributed.checkpoint loads nothing for which an optimizer of its own has no key."""
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model = torch.nn.ParameterList(make_params())
    optimizer = run(getattr(fusedopt, name)(model, lr=0.01, master_weights=True))
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    other = copy.deepcopy(model)
    resumed = getattr(fusedopt, name)(other, lr=0.01, master_weights=True)
    set_optimizer_state_dict(other, resumed, saved, options=options)
    assert_identical(values(resumed), values(optimizer))


def test_a_checkpoint_that_cannot_be_loaded() -> None:
    """Nothing of it stays: neither its state nor its options."""
    saved = run(fusedopt.AdamW(make_params(), **ROUNDED, seed=7)).state_dict()
    optimizer = run(fusedopt.AdamW(make_params(), **HALVES))

    before, options = contents(optimizer), dict(optimizer.param_groups[0])
    saved["state"][0]["step"] = "three"
    with pytest.raises(ValueError, match="could not convert"):
        optimizer.load_state_dict(saved)
    assert_unchanged(optimizer, before)
    assert optimizer.param_groups[0] == options
    run(optimizer, 1, first=3)


@pytest.mark.parametrize("as_other", [deque, UserList, tuple, lambda g: [UserDict(g[0])]])
def test_groups_of_other_types(as_other: Callable[[Any], Any]) -> None:
    """They may be torch's to step, which doesn't know the options: then it is an error."""
    optimizer = run(fusedopt.SGD(make_params(), lr=0.1, **ROUNDED), 1)
    optimizer.param_groups = as_other(optimizer.param_groups)
    before = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
    try:
        optimizer.step()
    except RuntimeError as error:
        assert "stochastic_rounding" in str(error)
        assert_identical([p.detach() for p in optimizer.param_groups[0]["params"]], before)
    else:
        assert kernels(optimizer) == {"sgd"}


def test_empty_groups_refuse_nothing() -> None:
    """A group without parameters asks for nothing that torch's step can't do."""
    params = make_params(torch.float32)
    empty: dict[str, Any] = {"params": [], "stochastic_rounding": True}
    optimizer = fusedopt.SGD([{"params": params}, empty], lr=0.1)
    optimizer.param_groups[0]["lr"] = Number(0.1)
    before = params[0].detach().clone()
    run(optimizer, 1)
    assert not torch.equal(params[0], before)


class Number(float):
    """A number of a user's class, for which torch's step takes all."""

    def __neg__(self) -> float:
        return -float(self)
