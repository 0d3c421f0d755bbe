"""Python code that runs while a step lets something go, makes something or looks for it.

Weak references' callbacks, finalisers and the methods of users' classes may do anything: also step,
drop what the step has seen, or replace it each time that the step looks.
"""

from __future__ import annotations

import collections
import gc
import threading
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import CLASS_CASES, Case, case, over, with_torch
from helpers import assert_identical, contents, make_params, random, set_grads, step
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt

STATEFUL = [c for c in (case("SGD-momentum"), *CLASS_CASES) if c.keeps_state]
Action = Callable[[Optimizer, list[Parameter]], Any]
ACTIONS: dict[str, Action] = {
    "collect": lambda o, ps: gc.collect(),
    "allocate": lambda o, ps: [torch.randn(4) for _ in range(200)],
    "drop state": lambda o, ps: o.state.pop(ps[0], None),
    "new gradients": lambda o, ps: set_grads(ps, 77),
    "step": lambda o, ps: o.step(),
    "drop group": lambda o, ps: o.param_groups[0]["params"].pop(),
    "raise": lambda o, ps: 1 / 0,
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("shared", ["one for two", "expanded", "a view"])
@pytest.mark.parametrize("action", ACTIONS)
@over(STATEFUL, "case")
def test_callbacks_when_gradients_are_separated(case: Case, action: str, shared: str) -> None:
    """A gradient that is unscaled in place must be a parameter's own; the old one is let go."""
    params = make_params([(4,), (4,), (3,)])
    optimizer = case.make(params)
    step(optimizer, 0)
    calls: list[int] = []
    references = []

    def callback(_: Any) -> None:
        calls.append(1)
        if len(calls) < 4:
            ACTIONS[action](optimizer, params)

    grads: list[Tensor] = [random((4,), i) for i in range(2)] + [random((3,), 2)]
    if shared == "one for two":
        grads[1] = grads[0]
    elif shared == "expanded":
        grads[0] = random((1,), 5).expand(4)
    else:
        whole = random((6,), 5)
        grads[0], grads[1] = whole[:4], whole[2:]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
        references.append(weakref.ref(param.grad, callback))
    del grads, grad
    optimizer.grad_scale = torch.tensor(4.0)  # type: ignore[attr-defined]
    optimizer.step()
    assert calls
    for param in params:
        assert param.isfinite().all()


def test_separated_gradients_are_unscaled_once() -> None:
    results = []
    for shared in (True, False):
        params = make_params([(4,), (4,)])
        optimizer = fusedopt.Adam(params)
        grad = random((4,), 3) * 4
        params[0].grad = grad
        params[1].grad = grad if shared else grad.clone()
        optimizer.grad_scale = torch.tensor(4.0)  # type: ignore[attr-defined]
        optimizer.step()
        results.append([p.detach() for p in params] + [p.grad for p in params])
    assert_identical(results[0], results[1])


@pytest.mark.parametrize("action", ["collect", "allocate", "step", "new gradients"])
@over([c for c in STATEFUL if "lr" in c.options], "case")
def test_finalisers_of_what_a_step_lets_go(case: Case, action: str) -> None:
    """A list, a number or a dict that was replaced while the step read the options."""
    params = make_params([(4,), (3,)])
    optimizer = case.make(params)
    step(optimizer, 0)
    set_grads(params, 1)
    ran: list[int] = []

    class Last(list):  # type: ignore[type-arg]
        def __del__(self) -> None:
            if not ran:
                ran.append(1)
                ACTIONS[action](optimizer, params)

    class Number:
        def __float__(self) -> float:
            optimizer.param_groups[0]["lr"] = 0.01
            optimizer.param_groups[0]["params"] = params
            return 0.01

    optimizer.param_groups[0]["params"] = Last(params)
    optimizer.param_groups[0]["lr"] = Number()
    optimizer.step()
    gc.collect()
    assert ran
    optimizer.step()


@over([c for c in CLASS_CASES if "betas" in c.options], "case")
def test_a_number_that_empties_its_list(case: Case) -> None:
    """All numbers of a list are those that it had when the step came to it."""

    class Emptying:
        def __float__(self) -> float:
            betas.clear()
            return 0.9

    optimizer, expected = case.make(make_params()), case.make(make_params())
    for each in (optimizer, expected):
        step(each, 0)
    betas: list[Any] = [Emptying(), 0.99]
    optimizer.param_groups[0]["betas"] = betas
    expected.param_groups[0]["betas"] = (0.9, 0.99)
    for each in (optimizer, expected):
        step(each, 1)
    assert not betas
    assert_identical(contents(optimizer)[1:], contents(expected)[1:])


@over(with_torch(STATEFUL), "case")
def test_a_step_from_the_hash_of_a_parameter(case: Case) -> None:
    """Making state looks a parameter up, which is Python code: as good a place as any to step."""
    if case.makes_state_early:
        return
    results = []
    for module in (fusedopt, torch.optim):
        inside: list[Any] = []

        class Hashed(Parameter):
            def __hash__(self, inside: list[Any] = inside) -> int:
                if len(inside) == 1:
                    inside.append(None)
                    inside[0].step()
                return id(self)

        params = [Hashed(random((4,), 0)), Parameter(random((3,), 1))]
        set_grads(params, 0)
        optimizer = case.make(params, module)
        inside.append(optimizer)
        optimizer.step()
        optimizer.step()
        assert len(inside) == 2
        results.append([p.detach().as_subclass(Tensor) for p in params])
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-10)


class Forgetful(dict):  # type: ignore[type-arg]
    """Keeps one entry, the last."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.clear()
        super().__setitem__(key, value)

    def __missing__(self, key: Any) -> Any:
        self[key] = {}
        return self[key]


class ById(dict):  # type: ignore[type-arg]
    """Keeps its entries under other keys."""

    def __getitem__(self, key: Any) -> Any:
        return dict.setdefault(self, id(key), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(id(key), value)


@pytest.mark.parametrize("state", [Forgetful, ById])
@over(with_torch(STATEFUL), "case")
def test_state_that_isnt_found_where_it_was_put(case: Case, state: Callable[[], Any]) -> None:
    results = []
    for module in (fusedopt, torch.optim):
        params = make_params([(3,), (2,)])
        optimizer = case.make(params, module)
        optimizer.state = state()
        try:
            for t in range(3):
                step(optimizer, t)
            results.append([p.detach() for p in params])
        except KeyError:  # torch's Adagrad makes state in its constructor only, in some versions
            results.append([])
    if results[1]:
        torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("times", [2, 3])
@over([c for c in CLASS_CASES if c.has_fallback or not c.counts_steps], "case")
def test_an_empty_parameter_listed_several_times(case: Case, times: int) -> None:
    results = []
    for module in (fusedopt, torch.optim):
        empty, other = make_params([(0, 3), (2,)])
        optimizer = case.make([other, empty], module)
        optimizer.param_groups[0]["params"] += [empty] * (times - 1)
        for t in range(3):
            step(optimizer, t)
        count = optimizer.state[empty].get("step", torch.tensor(0.0))
        results.append((other.detach(), count))
    torch.testing.assert_close(results[0], results[1])


@over(with_torch(STATEFUL), "case")
def test_parameters_that_are_equal_to_all_others(case: Case) -> None:
    class Equal(Parameter):
        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 7

    results = []
    for module in (fusedopt, torch.optim):
        params = [Equal(random((3,), i)) for i in range(2)]
        optimizer = case.make(params[:1], module)
        optimizer.param_groups[0]["params"].append(params[1])
        for t in range(3):
            set_grads(params, t)
            optimizer.step()
        results.append([p.detach().as_subclass(Tensor) for p in params])
    torch.testing.assert_close(results[0], results[1])


@over([c for c in STATEFUL if not c.makes_state_early], "case")
def test_a_factory_that_makes_filled_state(case: Case) -> None:
    """`optimizer.state[param]` is what torch asks for, and a defaultdict may answer anything."""
    results = []
    for module in (fusedopt, torch.optim):
        params = make_params([(3,), (3,)])
        first = case.make(params[:1], module)
        for t in range(3):
            step(first, t)
        filled = first.state[params[0]]
        optimizer = case.make(params[1:], module)
        optimizer.state = collections.defaultdict(
            lambda filled=filled: {k: v.clone() for k, v in filled.items()}
        )
        step(optimizer, 5)
        assert optimizer.state[params[1]].get("step", 4) == 4
        results.append(params[1].detach())
    torch.testing.assert_close(results[0], results[1])


@over(STATEFUL, "case")
def test_a_step_from_the_factory(case: Case) -> None:
    """It makes the state of all, and the step goes on with that."""
    results = []
    for module in (fusedopt, torch.optim):
        params = make_params([(3,), (3,), (3,)])
        optimizer = case.make(params, module)
        inner = [optimizer.step]

        def factory(inner: list[Any] = inner) -> dict[str, Any]:
            if inner:
                inner.pop()()
            return {}

        optimizer.state = collections.defaultdict(factory, optimizer.state)
        for t in range(2):
            set_grads(params, t)
            optimizer.step()
        results.append([p.detach() for p in params])
    torch.testing.assert_close(results[0], results[1])


def fallback(module: ModuleType, seen: list[Any]) -> tuple[Optimizer, list[Parameter]]:
    """An optimizer that torch steps in part, and a parameter that looks around meanwhile."""

    class Looking(Parameter):
        def add_(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(sorted(optimizer.state_dict()["param_groups"][0]["params"]))
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.param_groups[0]["note"] = len(seen)
            return super().add_(*args, **kwargs)

    params = [Parameter(random((3,), 0)), Looking(random((3,), 1)), Parameter(random((3,), 2))]
    optimizer = module.SGD(params, lr=0.1)
    return optimizer, params


def test_groups_are_whole_while_torch_steps_a_part() -> None:
    """Nothing that other code sees is swapped, and its edits stay."""
    for scaled in (False, True):
        seen: list[Any] = []
        optimizer, params = fallback(fusedopt, seen)
        set_grads(params, 0)
        groups = optimizer.param_groups
        if scaled:
            optimizer.grad_scale = torch.tensor(2.0)  # type: ignore[attr-defined]
        optimizer.step()
        assert seen == [[0, 1, 2], 0.1]
        assert optimizer.param_groups is groups
        assert optimizer.param_groups[0]["note"] == 2
        assert hasattr(optimizer, "grad_scale") is scaled


def test_state_dicts_in_another_thread_while_torch_steps() -> None:
    params = [Parameter(torch.randn(50, dtype=torch.complex64)) for _ in range(20)]
    params += make_params([(5,)] * 5)  # type: ignore[arg-type]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = fusedopt.Adam(params)
    optimizer.step()
    stop = threading.Event()
    errors: list[BaseException] = []

    def look() -> None:
        while not stop.is_set():
            try:
                found = optimizer.state_dict()
                assert len(found["param_groups"][0]["params"]) == len(params)
                optimizer.param_groups[0]["note"] = optimizer.param_groups[0].get("note", 0) + 1
            except BaseException as error:  # noqa: BLE001
                errors.append(error)
                return

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(60):
        optimizer.step()
    stop.set()
    thread.join()
    assert not errors, errors
    assert optimizer.param_groups[0]["note"] > 0


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("maximize", [False, True])
@over([*with_torch(CLASS_CASES), case("SGD-nesterov"), case("SGD-momentum")], "case")
def test_torchs_step_leaves_gradients_as_they_are(
    case: Case, maximize: bool, foreach: bool | None
) -> None:
    """Also in its foreach path, which adds the momentum to Nesterov's gradients in place."""
    params = [Parameter(torch.complex(random((3,), i), random((3,), i + 9))) for i in range(2)]
    optimizer = case.make(params, foreach=foreach, maximize=maximize)
    for t in range(3):
        for i, p in enumerate(params):
            p.grad = torch.complex(random((3,), t + i), random((3,), t + i + 9))
        before = [p.grad.clone() for p in params if p.grad is not None]
        optimizer.step()
        assert_identical([p.grad for p in params], before)


def test_explain_changes_nothing() -> None:
    """Not even memory that is shared until somebody writes."""
    params = make_params([(4,)])
    optimizer = fusedopt.Adam(params)
    step(optimizer, 0)
    set_grads(params, 1)
    state = optimizer.state[params[0]]["exp_avg"]
    clone = torch._lazy_clone(state)
    before = contents(optimizer)
    fusedopt.explain(optimizer)
    assert torch._C._data_address(state) == torch._C._data_address(clone)
    assert_identical(contents(optimizer), before)
    optimizer.step()
    assert torch._C._data_address(state) != torch._C._data_address(clone)


class Dropping:
    """A learning rate that lets go of the first parameter when it is read for the second time."""

    def __init__(self, optimizer: Optimizer, params: list[Parameter]) -> None:
        self.optimizer, self.params, self.calls = optimizer, params, 0

    def __float__(self) -> float:
        self.calls += 1
        if self.calls == 2:
            self.optimizer.param_groups[0]["params"].pop(0)
            self.params.pop(0)
        return 0.1


LARGE = 4_000_000  # elements: a tensor whose memory is given back when it is freed


@pytest.mark.parametrize("action", ["step", "drop a gradient"])
@pytest.mark.parametrize("held_by", ["lazily copied memory", "a shared gradient"])
def test_callbacks_of_what_the_first_look_held(held_by: str, action: str) -> None:
    """What a step found to be needed may be all that holds a parameter when it looks again."""
    params = make_params([(4,), (4,), (LARGE,)], torch.float32)
    optimizer = fusedopt.SGD(list(params), lr=0.1)
    set_grads(params, 0)
    watched: list[Any] = []
    if held_by == "a shared gradient":
        shared = torch.ones(4)
        params[0].grad = params[1].grad = shared
        optimizer.grad_scale = torch.tensor(2.0)  # type: ignore[attr-defined]

        def separated(_: Any) -> None:
            optimizer.param_groups[0]["params"].pop(0)
            params.pop(0)

        watched.append(weakref.ref(shared, separated))
        del shared
    else:
        base = torch.ones(4)
        params[0].data = torch._lazy_clone(base)
        optimizer.param_groups[0]["lr"] = Dropping(optimizer, params)
    ran: list[int] = []

    def gone(_: Any) -> None:
        ran.append(1)
        optimizer.param_groups[0]["lr"] = 0.1
        if action == "step":
            optimizer.step()
        else:
            params[-1].grad = None

    watched.append(weakref.ref(params[0], gone))
    optimizer.step()
    assert ran
    assert all(param.isfinite().all() for param in params)
