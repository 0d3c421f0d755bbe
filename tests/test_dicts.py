"""A step doesn't read a dict again that is as it was: no way to change one may escape it.

How that is seen depends on Python (csrc/torch/dicts.h). Each change comes after steps without one.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import SCALARS, Case, case, over
from helpers import Make, assert_identical, contents, make_params, set_grads, step, twins
from torch import Tensor
from torch.optim import Optimizer

import fusedopt

CASES = [case("SGD-momentum"), case("AdamW-default")]
# What a dict held is kept, so that a step that missed its change would change that, and no more.
kept: list[Any] = []


def first_key(state: dict[str, Any]) -> str:
    """The key of a state of the parameter's size."""
    return next(key for key in state if key not in SCALARS)


class Attributes:
    """An object whose attributes are a state."""


def set_attribute(holder: Attributes, key: str, value: Tensor) -> None:
    """Often enough for Python to replace the instruction by one for this class."""
    for _ in range(50):
        if key == "exp_avg":
            holder.exp_avg = value
        else:
            holder.momentum_buffer = value


def by_attribute(state: dict[str, Any], key: str, value: Tensor) -> None:
    holder = Attributes()
    set_attribute(Attributes(), key, value)
    holder.__dict__ = state
    set_attribute(holder, key, value)


def by_popitem(state: dict[str, Any], key: str, value: Tensor) -> None:
    taken = [state.popitem() for _ in range(len(state))]
    for name, before in reversed(taken):
        state[name] = value if name == key else before


def by_setdefault(state: dict[str, Any], key: str, value: Tensor) -> None:
    taken = {name: state.pop(name) for name in list(state)}
    for name, before in taken.items():
        state.setdefault(name, value if name == key else before)


def by_clear(state: dict[str, Any], key: str, value: Tensor) -> None:
    new = {**state, key: value}
    state.clear()
    state.update(new)  # into an empty dict: Python copies the other's table as a whole


def by_deletion(state: dict[str, Any], key: str, value: Tensor) -> None:
    new = {**state, key: value}
    for name in new:
        del state[name]
    for name in new:
        state[name] = new[name]


def by_growth(state: dict[str, Any], key: str, value: Tensor) -> None:
    for i in range(100):
        state[f"mine {i}"] = i
    state[key] = value
    for i in range(100):
        del state[f"mine {i}"]


WAYS: dict[str, Callable[[dict[str, Any], str, Tensor], Any]] = {
    "item": lambda state, key, value: state.__setitem__(key, value),
    "update": lambda state, key, value: state.update({key: value}),
    "update by name": lambda state, key, value: state.update(**{key: value}),
    "update by pairs": lambda state, key, value: state.update([(key, value)]),
    "union": lambda state, key, value: state.__ior__({key: value}),
    "init": lambda state, key, value: state.__init__({key: value}),
    "code": lambda state, key, value: exec(f"{key} = value", {"value": value}, state),
    "attribute": by_attribute,
    "popitem": by_popitem,
    "setdefault": by_setdefault,
    "clear": by_clear,
    "deletion": by_deletion,
    "growth": by_growth,
}


def play(make: Make, change: Callable[[Optimizer, Tensor], Any]) -> Optimizer:
    """Steps until all is as usual, changes something of the second parameter, and steps again."""
    params = make_params()
    optimizer = make(params)
    for t in range(3):
        step(optimizer, t)
    for t in range(3, 7):
        change(optimizer, params[1])
        for k in range(2):
            step(optimizer, 2 * t + k)
    return optimizer


@over(CASES, "case")
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_change_a_dict(case: Case, way: str) -> None:
    def change(optimizer: Optimizer, param: Tensor) -> None:
        state = optimizer.state[param]
        key = first_key(state)
        kept.append(dict(state))
        WAYS[way](state, key, state[key] * 0.5)

    twins(case, lambda make: play(make, change))
    kept.clear()


@over(CASES, "case")
def test_a_state_that_is_an_objects_attributes(case: Case) -> None:
    def change(optimizer: Optimizer, param: Tensor) -> None:
        state = optimizer.state[param]
        if not kept:
            kept.append(Attributes())
            for key, value in state.items():
                setattr(kept[0], key, value)
            optimizer.state[param] = vars(kept[0])
        else:
            key = first_key(state)
            kept.append(state[key])
            set_attribute(kept[0], key, state[key] * 0.5)

    def scenario(make: Make) -> Optimizer:
        kept.clear()
        return play(make, change)

    twins(case, scenario)
    kept.clear()


def replace_state(optimizer: Optimizer, param: Tensor, how: str) -> None:
    """Replaces a state, or optimizer.state, or puts back what was taken out."""
    states = optimizer.state
    old = dict(states[param])
    key = first_key(old)
    new = {**old, key: old[key] * 0.5}
    kept.append((states, old))
    if how == "state":
        states[param] = new
    elif how == "state at the same address":
        kept.pop()
        address = id(states[param])
        others = []
        del states[param]
        for _ in range(100):
            others.append(dict(new))
            if id(others[-1]) == address:
                break
        states[param] = others[-1]
    elif how == "OrderedDict":
        states[param] = OrderedDict(new)
        states[param].move_to_end(key)
        states[param].move_to_end(key, last=False)
    elif how == "all cleared":
        states.clear()
    elif how == "one cleared":
        states[param].clear()
    elif how == "all in another dict":
        optimizer.state = {p: new if p is param else dict(s) for p, s in states.items()}
    elif how == "all in an OrderedDict":
        optimizer.state = OrderedDict({**states, param: new})
        optimizer.state.move_to_end(param)
    elif how == "all in a defaultdict":
        optimizer.state = defaultdict(dict, {**states, param: new})
    elif how == "put back":
        taken = states.pop(param)
        step(optimizer, 100)
        kept.append(states[param])
        states[param] = taken
    elif how == "swapped":
        other = next(p for p in states if p is not param)
        states[param] = {k: v.clone() for k, v in old.items()}
        states[other] = {k: v * 0.5 for k, v in states[other].items()}
    elif how == "loaded":
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


@over(CASES, "case")
@pytest.mark.parametrize(
    "how",
    [
        "state",
        "state at the same address",
        "OrderedDict",
        "all cleared",
        "one cleared",
        "all in another dict",
        "all in an OrderedDict",
        "all in a defaultdict",
        "put back",
        "swapped",
        "loaded",
    ],
)
def test_a_state_replaced_between_steps(case: Case, how: str) -> None:
    twins(case, lambda make: play(make, lambda o, p: replace_state(o, p, how)))
    kept.clear()


@over(CASES, "case")
def test_a_state_changed_while_its_parameter_has_no_gradient(case: Case) -> None:
    """The steps in between see that something has changed, and don't look at what."""

    def change(optimizer: Optimizer, param: Tensor) -> None:
        state = optimizer.state[param]
        key = first_key(state)
        kept.append(state[key])
        state[key] = state[key] * 0.5
        for t in range(2):
            step(optimizer, t, [p for p in optimizer.state if p is not param])

    twins(case, lambda make: play(make, change))
    kept.clear()


@over(CASES, "case")
def test_a_copy_and_its_original_step_apart(case: Case) -> None:
    def scenario(make: Make) -> Optimizer:
        copies: list[Optimizer] = []

        def change(optimizer: Optimizer, param: Tensor) -> None:
            copies.append(copy.deepcopy(optimizer))
            for each in copies:
                step(each, len(copies))

        optimizer = play(make, change)
        return copies[0] if len(kept) % 2 else optimizer

    for _ in range(2):  # first the original, then the copy
        twins(case, scenario)
        kept.append(None)
    kept.clear()


def test_options_that_a_scheduler_changes_at_every_step() -> None:
    def scenario(make: Make) -> Optimizer:
        optimizer = make(make_params())
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12)
        for t in range(10):
            step(optimizer, t)
            scheduler.step()
        return optimizer

    for each in CASES:
        twins(each, scenario)


def train(each: Case, disturb: Callable[[], Any] = lambda: None) -> list[Any]:
    """Steps, with changes of the optimizer's own state in between; what is there at the end."""
    optimizer = each.make(make_params())
    for t in range(20):
        step(optimizer, t)
        disturb()
        if t % 5 == 4:
            for state in optimizer.state.values():
                key = first_key(state)
                state[key] = state[key] * 0.5
    return contents(optimizer)


def test_optimizers_in_threads_whose_states_change() -> None:
    results: dict[int, list[Any]] = {}

    def job(i: int) -> None:
        results[i] = train(CASES[i % 2])

    threads = [threading.Thread(target=job, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = [train(each) for each in CASES]
    for i in range(4):
        assert_identical(results[i], alone[i % 2])


def test_a_thousand_optimizers_come_and_go() -> None:
    def disturb() -> None:
        for _ in range(50):
            other = fusedopt.Adam([torch.nn.Parameter(torch.ones(2))])
            set_grads(other.param_groups[0]["params"], 0)
            other.step()

    for each in CASES:
        assert_identical(train(each, disturb), train(each))


PROGRAM = """
import ctypes, sys
import torch, fusedopt
watchers = 0
if sys.argv[1] == "taken":
    add = ctypes.pythonapi.PyDict_AddWatcher
    callback = ctypes.CFUNCTYPE(*[ctypes.c_int] * 2, *[ctypes.c_void_p] * 3)(lambda *event: 0)
    try:
        while True:
            add(callback)
            watchers += 1
    except RuntimeError as full:
        assert "no more dict watcher IDs available" in str(full), full
results = []
for module in (fusedopt, torch.optim):
    params = [torch.nn.Parameter(torch.ones(4)) for _ in range(2)]
    optimizer = module.SGD(params, lr=0.5, momentum=0.5)
    for t in range(8):
        for p in params:
            p.grad = torch.ones(4)
        optimizer.step()
        for p in params:
            kept = optimizer.state[p]["momentum_buffer"]
            optimizer.state[p]["momentum_buffer"] = kept * (0.5 if t > 3 else 1)
    results.append(params)
for ours, theirs in zip(*results):
    assert torch.equal(ours, theirs)
print(watchers)
"""


@pytest.mark.parametrize("watchers", ["free", "taken"])
def test_a_program_that_ends_with_its_optimizers(watchers: str) -> None:
    """Also where others have taken all of Python's watchers of dicts, so that we get none."""
    if watchers == "taken" and sys.version_info < (3, 12):
        pytest.skip("this Python has no watchers of dicts")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, watchers], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (int(done.stdout) > 0) == (watchers == "taken")
