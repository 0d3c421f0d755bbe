"""Functional optimizers by themselves; rank_functional.py has DDP and ZeRO use them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CLASS_CASES, Case, case, over
from helpers import all_params, assert_identical, contents, make_params, random, set_grads
from test_threads import run_threads
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

import fusedopt
from fusedopt.functional import Functional, Maker

STEPS = 3


def make(case: Case, params: list[Any], **overrides: Any) -> Functional:
    maker = Maker(getattr(fusedopt, case.name))
    return maker(params, **{**case.kwargs, **overrides}, _allow_empty_param_list=True)


def grads_of(params: list[Any], t: int) -> list[Any]:
    return [random(p.shape, 10 * t + i, p.dtype) for i, p in enumerate(params)]


def plainly(case: Case) -> Any:
    """An optimizer after some steps, one of which leaves a parameter out."""
    params = make_params()
    optimizer = case.make(params)
    for t in range(STEPS):
        for i, (p, grad) in enumerate(zip(params, grads_of(params, t), strict=True)):
            p.grad = None if (t, i) == (1, 2) else grad
        optimizer.step()
    optimizer.zero_grad()
    return optimizer


@over(CLASS_CASES, "case")
def test_a_list_of_gradients_makes_a_step(case: Case) -> None:
    params = make_params()
    functional = make(case, params)
    for t in range(STEPS):
        grads = grads_of(params, t)
        grads[2] = None if t == 1 else grads[2]
        functional.step(grads)
    functional.step([None] * len(params))
    assert_identical(contents(functional.optimizer), contents(plainly(case)))


@over(CLASS_CASES, "case")
def test_one_by_one_in_several_threads(case: Case) -> None:
    """Each parameter is stepped in a thread of its own, which adds it."""
    params = make_params()
    functional = make(case, [])

    def steps(i: int) -> None:
        for t in range(STEPS):
            grad = None if (t, i) == (1, 2) else grads_of(params, t)[i]
            functional.step_param(params[i], grad)

    run_threads([lambda i=i: steps(i) for i in range(len(params))])
    (group,) = functional.param_groups
    group["params"].sort(key=lambda p: [p is other for other in params].index(True))
    assert_identical(contents(functional.optimizer), contents(plainly(case)))


def test_no_other_gradient_is_touched() -> None:
    """They may be accumulating meanwhile, in a thread that doesn't wait for Python's lock."""
    params = make_params()
    functional = make(case("AdamW-all"), params)
    set_grads(params, 7)
    before = [p.grad for p in params]
    seen: list[list[Tensor | None]] = []
    handle = register_optimizer_step_pre_hook(lambda *_: seen.append([p.grad for p in params]))
    given = grads_of(params, 0)
    try:
        functional.step_param(params[0], given[0])
        functional.step([None, given[1], None, given[3]])
    finally:
        handle.remove()
    expected = [[given[0], *before[1:]], [before[0], given[1], before[2], given[3]]]
    for found, wanted in zip(seen, expected, strict=True):
        assert all(p is q for p, q in zip(found, wanted, strict=True))
    assert all(p.grad is q for p, q in zip(params, before, strict=True))


@pytest.mark.parametrize(
    "bad", [torch.ones(3, 3), torch.ones(13), torch.ones(13).double().to_sparse()]
)
def test_a_step_that_raises_changes_nothing(bad: Tensor) -> None:
    """A gradient of another shape or dtype, and one that no kernel takes."""
    each = case("Lion-all")
    params = make_params()
    functional = make(each, params)
    functional.step(grads_of(params, 0))
    set_grads(params, 7)
    before = contents(functional.optimizer)
    for step in (
        lambda: functional.step_param(params[1], bad),
        lambda: functional.step([random((5, 7), 0), bad, None, None]),
    ):
        with pytest.raises(RuntimeError):
            step()
        assert_identical(contents(functional.optimizer), before)
    functional.step(grads_of(params, 1))


def test_a_parameter_that_joins_shifts_the_places_of_others() -> None:
    first, second, new = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    functional = Functional(fusedopt.SGD, [first], lr=1.0)
    functional.optimizer.add_param_group({"params": [second]})
    functional.step([torch.ones(2), torch.ones(2)])
    functional.step_param(new, torch.ones(2))  # the first group's second
    functional.step([torch.ones(2), torch.ones(2), None])
    assert [p[0].item() for p in (first, second, new)] == [-2.0, -1.0, -2.0]


def reverse_groups(groups: list[Any]) -> None:
    groups.reverse()


def reverse_params(groups: list[Any]) -> None:
    groups[0]["params"].reverse()


def move_to_another(groups: list[Any]) -> None:
    groups[1]["params"].append(groups[0]["params"].pop(0))


def merge(groups: list[Any]) -> None:
    groups[0]["params"] += groups.pop()["params"]


def take_out(groups: list[Any]) -> None:
    groups[0]["params"].pop(1)


def split(groups: list[Any]) -> None:
    groups.insert(0, {**groups[0], "params": [groups[0]["params"].pop(0)], "lr": 0.5})


CHANGES = [reverse_groups, reverse_params, move_to_another, merge, take_out, split]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("one_by_one", [True, False])
def test_groups_that_are_changed_between_steps(
    change: Callable[[list[Any]], None], one_by_one: bool
) -> None:
    """What counts is the group in which a parameter is by now."""
    each, found = case("AdamW-all"), []
    for is_functional in (True, False):
        params = make_params()
        functional = make(each, params[:3])
        functional.optimizer.add_param_group({"params": params[3:], "lr": 0.3, "betas": (0.5, 0.7)})
        optimizer = functional.optimizer
        for t in range(STEPS):
            if t == 1:
                change(optimizer.param_groups)
            grads = dict(zip(params, grads_of(params, t), strict=True))
            if not is_functional:
                for p, grad in grads.items():
                    p.grad = grad
                optimizer.step()
            elif one_by_one:
                for p, grad in grads.items():
                    functional.step_param(p, grad)
            else:
                functional.step([grads[p] for p in all_params(optimizer)])
        optimizer.zero_grad()
        found.append([[p.detach(), dict(optimizer.state[p])] for p in params])
    assert_identical(*found)


def test_options_and_state_are_the_optimizers() -> None:
    """Whatever is changed there counts from the next step on."""
    params, others = make_params(), make_params()
    functional, optimizer = make(case("SGD-all"), params), case("SGD-all").make(others)
    for t in range(STEPS):
        for each in (functional.optimizer, optimizer):
            each.param_groups[0]["lr"] = 0.1 / (t + 1)
            each.state[each.param_groups[0]["params"][1]].clear()
        functional.step_param(params[1], random(params[1].shape, t))
        others[1].grad = random(others[1].shape, t)
        optimizer.step()
        other = case("SGD-all").make(params)
        other.load_state_dict(functional.state_dict())
        functional.load_state_dict(other.state_dict())
    optimizer.zero_grad()
    assert_identical(contents(functional.optimizer), contents(optimizer))


def test_without_gradients_it_is_a_plain_step() -> None:
    """As ZeroRedundancyOptimizer promises of its own."""
    functional, optimizer = (
        make(case("Adam-all"), make_params()),
        case("Adam-all").make(make_params()),
    )
    for each in (functional, optimizer):
        set_grads(each.param_groups[0]["params"], 0)
        each.step()
    assert_identical(contents(functional.optimizer), contents(optimizer))


def test_what_only_torchs_functional_adagrad_has_is_accepted() -> None:
    options = {"warmup_lr_multiplier": 1.0, "warmup_num_iters": 0.0, "coalesce_grad": True}
    functional = make(case("Adagrad-initial"), make_params(), **options)
    assert "coalesce_grad" not in functional.param_groups[0]
    with pytest.raises(TypeError, match="coalesce_grad"):
        make(case("Adam-all"), make_params(), coalesce_grad=True)


def test_what_makes_no_sense_is_refused() -> None:
    params = make_params()
    with pytest.raises(ValueError, match="empty parameter list"):
        Maker(fusedopt.Adam)([])
    for options in ({"max_grad_norm": 1.0}, {"stochastic_rounding": True}):
        with pytest.raises(ValueError, match=next(iter(options))):
            make(case("Adam-default"), params, **options)
    functional = make(case("Adam-default"), params)
    with pytest.raises(ValueError, match="gradients: 1 were given for 4 parameters"):
        functional.step([None])
    functional.optimizer.max_grad_norm = 1.0
    with pytest.raises(ValueError, match="max_grad_norm"):
        functional.step_param(params[0], torch.ones(5, 7).double())
    assert not functional.state


_PROGRAM = """
import sys, types
import torch
import fusedopt
assert "torch.distributed.optim" not in sys.modules
package = sys.modules["torch.distributed.optim"] = types.ModuleType("torch.distributed.optim")
package.__path__ = [{folder!r}]
for _ in range(2):
    from torch.distributed.optim import utils
    assert set(utils.found) == {{getattr(fusedopt, name) for name in fusedopt._C.optimizers()}}
    loaders = utils.__loader__, utils.__spec__.loader
    assert [type(loader).__name__ for loader in loaders] == ["SourceFileLoader"] * 2
    del sys.modules["torch.distributed.optim.utils"], package.utils
"""


def test_importing_fusedopt_does_not_import_torchs_map(tmp_path: Path) -> None:
    """That takes 4 s. A module in its place stands for it here."""
    (tmp_path / "utils.py").write_text(
        "found = {}\ndef register_functional_optim(key, optim): found[key] = optim\n"
    )
    program = _PROGRAM.format(folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
