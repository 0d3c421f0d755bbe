"""What users do to an optimizer's objects between steps is honoured at the next step."""

from __future__ import annotations

import copy
import gc
import weakref
from collections import defaultdict

import pytest
import torch
from cases import CLASS_CASES, MAIN_CASES, SCALARS, Case, case, dense, over, sliced
from helpers import (
    Make,
    all_params,
    contents,
    left_to_torch,
    make_params,
    random,
    set_grads,
    step,
    twins,
)
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt

STATEFUL = [c for c in MAIN_CASES if c.keeps_state]


def state_keys(optimizer: Optimizer, param: torch.Tensor) -> list[str]:
    """The keys of a parameter's tensor states, without the step count."""
    return [k for k in optimizer.state[param] if k not in SCALARS]


@over(MAIN_CASES, "case")
def test_data_replaced(case: Case) -> None:
    """`p.data = ...`: the new memory is updated, the old one never again."""
    old: list[tuple[torch.Tensor, torch.Tensor]] = []

    def scenario(make: Make) -> Optimizer:
        params = make_params()
        optimizer = make(params)
        for t in range(4):
            step(optimizer, t)
            p = params[t % 3]
            old.append((p.data, p.data.clone()))
            p.data = sliced(random(p.shape, t)) if p.dim() == 2 else dense(random(p.shape, t))
        step(optimizer, 9)
        return optimizer

    twins(case, scenario)
    for memory, values in old:
        assert torch.equal(memory, values)


@over(MAIN_CASES, "case")
def test_memory_swapped_under_a_tensor(case: Case) -> None:
    """`set_`, `resize_`-like changes and in-place edits of parameters and gradients."""

    def scenario(make: Make) -> Optimizer:
        params = make_params()
        optimizer = make(params)
        step(optimizer, 0)
        with torch.no_grad():
            params[0].set_(random((5, 7), 1))
            params[1].set_(torch.cat([random((13,), 2)] * 2).untyped_storage(), 4, (13,), (1,))
            params[2].fill_(0.5)
        optimizer.step()
        params[0].grad.set_(random((7, 5), 3).t())
        params[1].grad.neg_()
        optimizer.step()
        return optimizer

    twins(case, scenario)


@pytest.mark.parametrize("how", ["replace", "data", "set_", "in_place", "strided"])
@over(STATEFUL, "case")
def test_state_tensor_changed(case: Case, how: str) -> None:
    def scenario(make: Make) -> Optimizer:
        params = make_params()
        optimizer = make(params)
        step(optimizer, 0)
        for i, p in enumerate(params):
            for key in state_keys(optimizer, p):
                state, new = optimizer.state[p][key], random(p.shape, i).abs()
                if how == "replace":
                    optimizer.state[p][key] = new
                elif how == "data":
                    state.data = new
                elif how == "set_":
                    state.set_(new)
                elif how == "in_place":
                    state.add_(1.0)
                elif p.dim() == 2:
                    optimizer.state[p][key] = sliced(new)
        step(optimizer, 1)
        step(optimizer, 2)
        return optimizer

    if case.kwargs.get("centered"):
        pytest.skip("arbitrary averages have no variance")
    twins(case, scenario)


@pytest.mark.parametrize(
    "how", ["swapped", "other", "update", "reordered", "subclass", "attributes"]
)
@over(STATEFUL, "case")
def test_state_dict_of_a_parameter_changed(case: Case, how: str) -> None:
    """Whatever a parameter's entry is by now, each step takes the tensors that are in it then."""

    class Owner:
        pass

    def changed(own: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> object:
        if how == "update":
            own.update({k: v.clone() + 1 for k, v in own.items()})
            return own
        if how == "attributes":  # Python may store these without the dict's knowing
            owner = Owner()
            for key, tensor in own.items():
                setattr(owner, key, tensor)
            owners.append(owner)
            return owner.__dict__
        if how == "reordered":
            return dict(reversed([(k, v.clone()) for k, v in own.items()]))
        return defaultdict(dict, own) if how == "subclass" else {**other}

    owners: list[Owner] = []

    def scenario(make: Make) -> Optimizer:
        params = [Parameter(random((5, 3), i)) for i in range(2)]
        optimizer = make(params)
        first, second = params
        for t in range(4):
            step(optimizer, t)
            a, b = optimizer.state[first], optimizer.state[second]
            if how == "swapped":
                optimizer.state[first], optimizer.state[second] = b, a
            else:
                optimizer.state[first] = changed(a, {k: v.clone() for k, v in b.items()})
            step(optimizer, t)
            for owner in owners:
                for key, tensor in list(vars(owner).items()):
                    setattr(owner, key, tensor.clone() + 1)
            owners.clear()
        return optimizer

    if how == "subclass":
        left_to_torch(case, scenario, "not a plain dict")
    else:
        twins(case, scenario)


@pytest.mark.parametrize("how", ["fill_", "replace", "float64", "one_element", "integer", "data"])
@over([c for c in CLASS_CASES if c.counts_steps], "case")
def test_step_count_changed(case: Case, how: str) -> None:
    """The count in the state is the count, in each form torch's own loop takes."""
    new = {
        "replace": torch.tensor(7.0),
        "float64": torch.tensor(7.0, dtype=torch.float64),
        "one_element": torch.tensor([7.0]),
        "integer": torch.tensor(7),
    }

    def scenario(make: Make) -> Optimizer:
        params = make_params()
        optimizer = make(params)
        step(optimizer, 0)
        if how == "fill_":
            optimizer.state[params[0]]["step"].fill_(7.0)
        elif how == "data":
            optimizer.state[params[0]]["step"].data = torch.tensor(7.0)
        else:
            optimizer.state[params[0]]["step"] = new[how].clone()
        step(optimizer, 1)
        step(optimizer, 2)
        return optimizer

    ours, _ = twins(case, scenario)
    assert ours.state[all_params(ours)[0]]["step"].item() == 9


@pytest.mark.parametrize("how", ["pop", "clear", "new_dict", "copied", "empty_dict", "reordered"])
@over(STATEFUL, "case")
def test_state_replaced(case: Case, how: str) -> None:
    def scenario(make: Make) -> Optimizer:
        params = make_params()
        optimizer = make(params)
        step(optimizer, 0)
        step(optimizer, 1)
        if how == "pop":
            optimizer.state.pop(params[1])
        elif how == "clear":
            optimizer.state.clear()
        elif how == "new_dict":
            optimizer.state = defaultdict(dict)
        elif how == "copied":
            old = optimizer.state
            optimizer.state = defaultdict(dict, {p: copy.deepcopy(old[p]) for p in params})
        elif how == "empty_dict":
            optimizer.state[params[0]] = {}
        else:
            state = optimizer.state[params[0]]
            optimizer.state[params[0]] = {k: state[k] for k in reversed(state)} | {"mine": 3}
        step(optimizer, 2)
        step(optimizer, 3)
        return optimizer

    twins(case, scenario)


@over(MAIN_CASES, "case")
def test_state_swapped_between_parameters(case: Case) -> None:
    def scenario(make: Make) -> Optimizer:
        a, b = make_params([(6,), (6,)])
        optimizer = make([a, b])
        step(optimizer, 0)
        step(optimizer, 1, [a])
        if optimizer.state:
            optimizer.state[a], optimizer.state[b] = optimizer.state[b], optimizer.state[a]
        step(optimizer, 2)
        return optimizer

    twins(case, scenario)


@over(MAIN_CASES, "case")
def test_group_lists_edited(case: Case) -> None:
    """Parameters appended, removed, reordered and replaced; groups too."""

    def scenario(make: Make) -> Optimizer:
        params = make_params([(4,), (5,), (6,), (7,)])
        extra = make_params([(3,), (5,)], seed=1)
        optimizer = make([{"params": params[:3]}, {"params": params[3:], "lr": 0.2}])
        groups = optimizer.param_groups
        edits = [
            lambda: None,
            lambda: groups[0]["params"].append(extra[0]),
            lambda: groups[0]["params"].pop(1),
            lambda: groups[0]["params"].reverse(),
            lambda: groups[0]["params"].__setitem__(0, extra[1]),
            lambda: groups[1].update(params=[params[1]]),
            lambda: groups.reverse(),
            lambda: setattr(optimizer, "param_groups", [dict(g) for g in groups]),
            lambda: groups[0]["params"].clear(),
            lambda: optimizer.param_groups.pop(),
        ]
        for t, edit in enumerate(edits):
            edit()
            step(optimizer, t)
        return optimizer

    twins(case, scenario)


@over(MAIN_CASES, "case")
def test_parameter_replaced_by_its_twin(case: Case) -> None:
    """A new tensor object on the old memory, as `nn.Module._apply` makes, starts without state."""

    def scenario(make: Make) -> Optimizer:
        params = make_params([(6,), (7,)])
        optimizer = make(params)
        step(optimizer, 0)
        optimizer.param_groups[0]["params"][0] = Parameter(params[0].data)
        step(optimizer, 1)
        step(optimizer, 2)
        return optimizer

    twins(case, scenario)


@over(MAIN_CASES, "case")
def test_new_dtype_before_the_first_step(case: Case) -> None:
    def scenario(make: Make) -> Optimizer:
        model = torch.nn.Linear(4, 3)
        optimizer = make(model.parameters())
        if not optimizer.state:  # Adagrad makes its state in the constructor
            model.double()
        for i, p in enumerate(model.parameters()):
            p.data.copy_(random(p.shape, i))
        for t in range(3):
            step(optimizer, t)
        return optimizer

    if not case.makes_state_early:
        twins(case, scenario)


@over(CLASS_CASES, "case")
def test_nothing_is_kept_alive(case: Case) -> None:
    """Gradients, old state and the optimizer itself go when their users let go."""
    params = make_params()
    optimizer = case.make(params)
    step(optimizer, 0)
    gradients = [weakref.ref(p.grad) for p in params]
    optimizer.zero_grad()
    assert [g() for g in gradients] == [None] * len(params)
    step(optimizer, 1)
    old = [weakref.ref(state) for p in params for state in optimizer.state[p].values()]
    optimizer.state.clear()
    assert [s() for s in old] == [None] * len(old)
    set_grads(params, 2)
    if not case.makes_state_early:
        optimizer.step()
    params_left = [weakref.ref(p) for p in params]
    optimizer_left = weakref.ref(optimizer)
    del optimizer, params
    gc.collect()
    assert optimizer_left() is None
    assert [p() for p in params_left] == [None] * len(params_left)


def test_many_short_lived_optimizers() -> None:
    """Addresses are used again by new tensors: nothing may be remembered by address."""
    c = case("AdamW-all")
    expected = None
    for _ in range(50):
        params = make_params()
        optimizer = c.make(params)
        for t in range(3):
            step(optimizer, t)
            if t == 1:
                for p in params:
                    p.data = p.data.clone()
                    optimizer.state[p] = {k: v.clone() for k, v in optimizer.state[p].items()}
        found = [p.detach().clone() for p in params]
        expected = expected or found
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_subclass_with_own_step() -> None:
    """A user's subclass that adds to step() works as a subclass of torch's class does."""

    def make_class(base: type[Optimizer]) -> type[Optimizer]:
        class Decayed(base):  # type: ignore[misc, valid-type]
            def step(self, closure=None):  # type: ignore[no-untyped-def]
                with torch.no_grad():
                    for p in all_params(self):
                        p.mul_(0.5)
                return super().step(closure)

        return Decayed

    results = []
    for module in (fusedopt, torch.optim):
        optimizer = make_class(module.Adam)(make_params(), lr=0.1)
        for t in range(3):
            step(optimizer, t)
        results.append([p for p in contents(optimizer) if isinstance(p, torch.Tensor)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
