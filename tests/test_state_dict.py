"""Checkpoints move between torch.optim and fusedopt, in both directions, in the middle of a run."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from cases import (
    CASES,
    CLASS_CASES,
    DTYPES,
    MAIN_CASES,
    OPTIMIZERS,
    SCALARS,
    Case,
    case,
    over,
    takes,
    with_torch,
)
from helpers import (
    all_params,
    assert_identical,
    assert_same,
    contents,
    make_params,
    set_grads,
    step,
    undo_rounding,
)
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt

IMPLEMENTATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "for-loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    """What `torch.save` and `torch.load` (of weights only) make of it."""
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def moved(source: Optimizer, target: Optimizer) -> Optimizer:
    """Takes parameters and state over from another optimizer, by way of a file."""
    for p, q in zip(all_params(target), all_params(source), strict=True):
        p.data = q.data.clone()
    target.load_state_dict(through_a_file(source.state_dict()))
    return target


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@over(CASES, "case")
def test_moves_in_mid_run(case: Case, implementation: str) -> None:
    """torch -> fusedopt -> torch continues as if it had stayed with torch."""
    flags = IMPLEMENTATIONS[implementation]
    if not all(takes(torch.optim, case.name, option) for option in flags):
        pytest.skip(f"torch's {case.name} has no such option")
    if case.label.startswith("tensor") and implementation != "default":
        pytest.skip("torch takes tensor options in its default loop only")
    if implementation == "foreach" and "eta" in OPTIMIZERS[case.name]["scalars"]:
        pytest.skip("torch's foreach computes the next learning rate in float32")
    stays = case.make(make_params(), torch.optim)
    moves = case.make(make_params(), torch.optim, **flags)
    for t in range(8):
        if t == 2:
            moves = moved(moves, case.make(make_params()))
        if t == 5:
            moves = moved(moves, case.make(make_params(), torch.optim, **flags))
            if len(OPTIMIZERS[case.name]["scalars"]) > 1:  # which torch rounds in loading
                stays = moved(stays, case.make(make_params(), torch.optim))
        present = [0, 1, 3] if t < 4 else [0, 1, 2, 3]  # one late gradient
        for optimizer in (stays, moves):
            step(optimizer, t, [all_params(optimizer)[i] for i in present])
            optimizer.zero_grad()  # torch's foreach Nesterov changes gradients
    assert_same(moves, stays)


@over(DTYPES, "dtype")
@over(CASES, "case")
def test_resumes_bit_for_bit(case: Case, dtype: torch.dtype) -> None:
    stays = case.make(make_params(dtype=dtype))
    moves = case.make(make_params(dtype=dtype))
    for t in range(5):
        if t == 3:
            moves = moved(moves, case.make(make_params(dtype=dtype)))
        step(stays, t)
        step(moves, t)
    assert_identical(contents(moves), contents(stays))


@over(CASES, "case")
def test_format_is_torchs(case: Case) -> None:
    """The same keys in the same order, dtypes, shapes and options."""
    dicts = []
    for module in (fusedopt, torch.optim):
        optimizer = case.make(make_params(dtype=torch.float32), module)
        step(optimizer, 0)
        dicts.append(optimizer.state_dict())
    ours, theirs = dicts
    assert list(ours) == list(theirs)
    for a, b in zip(ours["param_groups"], theirs["param_groups"], strict=True):
        assert list(a) == list(b)
        assert_identical(a, b)
    assert list(ours["state"]) == list(theirs["state"])
    for index, state in theirs["state"].items():
        assert list(ours["state"][index]) == list(state)
        for key, value in state.items():
            mine = ours["state"][index][key]
            assert (mine.dtype, mine.shape, mine.device) == (value.dtype, value.shape, value.device)
            assert type(mine) is type(value)


@over(CLASS_CASES, "case")
def test_constructor_state_is_torchs(case: Case) -> None:
    """Before the first step too (Adagrad has state then)."""
    ours, theirs = (case.make(make_params(), m) for m in (fusedopt, torch.optim))
    assert_same(ours, theirs)
    ours.load_state_dict(theirs.state_dict())
    assert_same(ours, theirs)


@pytest.mark.parametrize("source", IMPLEMENTATIONS)
@pytest.mark.parametrize("live", [{}, {"fused": True}, {"fused": False}, {"foreach": True}])
@over(with_torch(CLASS_CASES), "case")
def test_load_keeps_the_live_flags(case: Case, live: dict[str, Any], source: str) -> None:
    """A checkpoint's `fused=None` or `False` doesn't switch our kernels off, nor `True` on."""
    flags = IMPLEMENTATIONS[source]
    if not all(takes(torch.optim, case.name, option) for option in flags):
        pytest.skip(f"torch's {case.name} has no such option")
    theirs = case.make(make_params(), torch.optim, **flags)
    step(theirs, 0)
    ours = case.make(make_params(), **live)
    options = [(g.get("fused", "absent"), g["foreach"]) for g in ours.param_groups]
    ours.load_state_dict(theirs.state_dict())
    assert [(g.get("fused", "absent"), g["foreach"]) for g in ours.param_groups] == options


def test_flags_are_kept_per_group() -> None:
    a, b, c = make_params([(3,), (3,), (3,)])
    ours = fusedopt.AdamW(
        [{"params": [a], "fused": False}, {"params": [b]}, {"params": [c], "fused": True}]
    )
    theirs = torch.optim.AdamW([{"params": [p]} for p in make_params([(3,), (3,), (3,)])])
    ours.load_state_dict(theirs.state_dict())
    assert [g["fused"] for g in ours.param_groups] == [False, None, True]


def test_fused_key_only_where_it_was_given() -> None:
    for name in (c.name for c in with_torch(CLASS_CASES)):
        if takes(torch.optim, name, "fused"):
            continue
        cls = getattr(fusedopt, name)
        assert "fused" not in cls(make_params()).param_groups[0]
        assert cls(make_params(), fused=True).param_groups[0]["fused"] is True
        assert cls(make_params(), fused=False).param_groups[0]["fused"] is False
        torchs = getattr(torch.optim, name)(make_params())
        torchs.load_state_dict(cls(make_params(), fused=True).state_dict())
        step(torchs, 0)


@over(with_torch(MAIN_CASES), "case")
def test_checkpoint_with_numbers_as_step_counts(case: Case) -> None:
    """Checkpoints of torch before 1.12 have Python numbers as step counts."""
    results = []
    for module in (fusedopt, torch.optim):
        old = case.make(make_params(), torch.optim)
        step(old, 0)
        state_dict = copy.deepcopy(old.state_dict())
        for state in state_dict["state"].values():
            if "step" in state:
                state["step"] = int(state["step"])
        optimizer = case.make([Parameter(p.detach().clone()) for p in all_params(old)], module)
        optimizer.load_state_dict(state_dict)
        undo_rounding(optimizer)
        step(optimizer, 1)
        results.append(optimizer)
    assert_same(*results)


@over(MAIN_CASES, "case")
def test_checkpoint_of_another_dtype(case: Case) -> None:
    """load_state_dict casts state to its parameter's dtype, but no single number."""
    theirs = case.make(make_params(), torch.optim)
    step(theirs, 0)
    ours = case.make(make_params(dtype=torch.bfloat16))
    ours.load_state_dict(theirs.state_dict())
    step(ours, 1)
    for p in all_params(ours):
        for key, value in ours.state.get(p, {}).items():
            assert value.dtype == (torch.float32 if key in SCALARS else torch.bfloat16)
            assert value.isfinite().all()


@over(MAIN_CASES, "case")
def test_deepcopy_and_pickle(case: Case) -> None:
    """A copy has parameters and state of its own, and goes on like the original."""
    original = case.make(make_params())
    step(original, 0)
    original.zero_grad()  # torch copies no gradients
    before = contents(original)
    copies = [copy.deepcopy(original), pickle.loads(pickle.dumps(original))]
    buffer = io.BytesIO()
    torch.save(original, buffer)
    buffer.seek(0)
    copies.append(torch.load(buffer, weights_only=False))
    for optimizer in copies:
        assert type(optimizer) is type(original)
        assert_identical(contents(optimizer), before)
        step(optimizer, 1)
    assert_identical(contents(original), before)  # shares nothing with its copies
    step(original, 1)
    for optimizer in copies:
        assert_identical(contents(optimizer), contents(original))
        step(optimizer, 2)
    step(original, 2)
    assert_identical(contents(copies[0]), contents(original))


def test_deepcopy_with_its_model() -> None:
    model = torch.nn.Linear(3, 2)
    pair = (model, fusedopt.Adam(model.parameters()))
    set_grads(model.parameters(), 0)
    pair[1].step()
    model2, optimizer2 = copy.deepcopy(pair)
    assert all_params(optimizer2)[0] is model2.weight
    start = model2.weight.detach().clone()
    step(optimizer2, 1)
    assert not torch.equal(model2.weight, start)


@over(CLASS_CASES, "case")
def test_state_dict_hooks(case: Case) -> None:
    """The four kinds of hooks are called, and what they return is used."""
    calls: list[str] = []
    optimizer = case.make(make_params())
    step(optimizer, 0)
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("save pre"))
    optimizer.register_state_dict_post_hook(lambda o, d: calls.append("save post") or {**d, "x": 1})
    saved = optimizer.state_dict()
    assert saved["x"] == 1
    target = case.make(make_params())

    def double(o: Optimizer, d: dict[str, Any]) -> dict[str, Any]:
        calls.append("load pre")
        groups = [{**g, "lr": 2 * g["lr"]} for g in d["param_groups"]]
        return {**d, "param_groups": groups}

    target.register_load_state_dict_pre_hook(double)
    target.register_load_state_dict_post_hook(lambda o: calls.append("load post"))
    target.load_state_dict(saved)
    assert calls == ["save pre", "save post", "load pre", "load post"]
    assert target.param_groups[0]["lr"] == 2 * optimizer.param_groups[0]["lr"]
    step(target, 1)


def test_named_parameters() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = fusedopt.AdamW(model.named_parameters())
    step(optimizer, 0)
    saved = through_a_file(optimizer.state_dict())
    assert saved["param_groups"][0]["param_names"] == ["weight", "bias"]
    other = torch.optim.AdamW(torch.nn.Linear(3, 2).named_parameters())
    other.load_state_dict(saved)
    step(other, 1)
    optimizer.load_state_dict(through_a_file(other.state_dict()))
    step(optimizer, 2)


def test_load_of_a_wrong_size_is_torchs_error() -> None:
    ours = fusedopt.Adam(make_params())
    theirs = torch.optim.Adam(make_params()[:2])
    with pytest.raises(ValueError, match="doesn't match the size"):
        ours.load_state_dict(theirs.state_dict())


@over(CLASS_CASES, "case")
def test_resume_after_pickle_of_an_old_class(case: Case) -> None:
    """`__setstate__` fills in options that older checkpoints don't have."""
    optimizer = case.make(make_params())
    step(optimizer, 0)
    state = optimizer.__getstate__()
    for group in state["param_groups"]:
        for key in ("maximize", "foreach", "differentiable", "fused"):
            group.pop(key, None)
    old = object.__new__(type(optimizer))
    old.__setstate__(state)
    step(old, 1)


def test_case_lookup_is_one_to_one() -> None:
    """The table's ids are unique, and every class has its cases."""
    assert len({c.id for c in CASES}) == len(CASES)
    assert case("Adam-all").name == "Adam"
