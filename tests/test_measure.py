"""`fusedopt.measure`: what it answers, and whom and what it refuses."""

from __future__ import annotations

import types
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import Case
from helpers import all_params, assert_identical, contents, make_params, set_grads
from loops import ADAMS, BOTH, CALLS, adamw, few_samples, names, notes, train  # noqa: F401
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

import fusedopt
from fusedopt import comparison, turns

# --- The answer.


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    """A clock that stands still but for what a test says."""
    time = types.SimpleNamespace(now=0.0, phases={})
    monkeypatch.setattr(turns, "time", types.SimpleNamespace(perf_counter=lambda: time.now))
    run = comparison._run_phase

    def run_phase(optimizer: Any, *rest: Any) -> None:
        label = type(optimizer).__module__.split(".")[0]
        time.now += time.phases[label + ("-fused" if optimizer.param_groups[0]["fused"] else "")]
        run(optimizer, *rest)

    monkeypatch.setattr(comparison, "_run_phase", run_phase)
    return time


def test_what_the_figures_are(clock: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The loop takes 10 ms, of which torch's phase takes 4; with ours it would take 6.5."""
    clock.phases = {"torch": 0.004, "fusedopt": 0.0005, "torch-fused": 0.002}
    optimizer, answers = adamw(torch.optim.AdamW), []
    for i in range(CALLS):
        set_grads(all_params(optimizer), i)
        answers.append(fusedopt.measure(optimizer))
        clock.now += 0.010 if i > 2 else 1.0  # the first steps don't count
    answer = answers[-1]
    assert answers == [None] * 25 + [answer] * (CALLS - 25)
    assert answer.loop_seconds == pytest.approx(0.010)
    found = [(t.name, t.seconds, t.loop_seconds, t.share) for t in answer.timings]
    expected = [
        ("torch.optim.AdamW", 0.004, 0.010, 0.4),
        ("fusedopt.AdamW", 0.0005, 0.0065, 0.0005 / 0.0065),
        ("torch.optim.AdamW, fused=True", 0.002, 0.008, 0.25),
    ]
    assert [row[0] for row in found] == [row[0] for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row[1:] == pytest.approx(other[1:])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "fusedopt.measure watches the loop, and answers within 26 calls, one in a step"
    assert lines == str(answer).splitlines()
    assert lines == [
        "torch.optim.AdamW takes 40.0% of the loop (step + zero_grad; 4 tensors, 73 elements)",
        "                               phase, ms  loop, ms  share  loop's speed",
        "torch.optim.AdamW              4.00       10.0      40.0%  1.00x",
        "fusedopt.AdamW                 0.500      6.50      7.7%   1.54x",
        "torch.optim.AdamW, fused=True  2.00       8.00      25.0%  1.25x",
        "medians of 4 steps each, on copies, by turns",
    ]


def test_a_slow_loop_gets_fewer_samples(clock: Any) -> None:
    """After so many seconds three steps of the loop are enough, and a row of turns."""
    clock.phases = {"torch": 0.5, "fusedopt": 0.25, "torch-fused": 1.0}
    optimizer, calls, answer = adamw(), 0, None
    while answer is None:
        set_grads(all_params(optimizer), calls)
        answer = fusedopt.measure(optimizer, seconds=2)
        clock.now += 1.0
        calls += 1
    assert (calls, answer.steps) == (1 + 3 + 3 + 2 * 9, 4)
    assert answer.timings[0].share == pytest.approx(0.25)


def test_what_other_loops_copies_take_is_in_no_loop(clock: Any) -> None:
    """One optimizer steps three times for each step of the other, so it is compared earlier."""
    clock.phases = {"torch": 0.004, "fusedopt": 0.0005, "torch-fused": 0.002}
    often, seldom = adamw(torch.optim.AdamW), adamw(torch.optim.AdamW)
    for i in range(CALLS):
        for optimizer in (often, often, often, seldom):
            set_grads(all_params(optimizer), i)
            answer = fusedopt.measure(optimizer)
            clock.now += 0.010
    assert answer.loop_seconds == pytest.approx(0.040)


def test_copies_that_take_longer_than_the_loop(clock: Any) -> None:
    clock.phases = {"torch": 0.5, "fusedopt": 0.25, "torch-fused": 1.0}
    answer = train(adamw())
    assert answer.timings[0].share == 1.0
    assert "is measure called once in each step?" in answer.notes[-1]


@pytest.mark.parametrize(("case", "module"), BOTH)
def test_which_are_compared(case: Case, module: ModuleType) -> None:
    answer = train(case.make(make_params(dtype=torch.float32), module))
    ours, torchs = f"fusedopt.{case.name}", f"torch.optim.{case.name}"
    own = ours if module is fusedopt else torchs
    expected = {ours}
    if case.has_fallback:
        cls = getattr(torch.optim, case.name)
        has_fused = "fused" in cls.__init__.__code__.co_varnames
        expected |= {torchs} | ({f"{torchs}, fused=True"} if has_fused else set())
    assert names(answer)[0] == own
    assert set(names(answer)) == expected
    assert (answer.tensors, answer.elements, answer.steps) == (4, 73, 4)
    assert all(0 < t.share <= 1 and t.seconds <= t.loop_seconds for t in answer.timings)
    told = f"torch.optim has no {case.name} to compare with"
    assert notes(answer) == ([] if case.has_fallback else [told])


@pytest.mark.parametrize(
    ("cls", "options", "own"),
    [
        (torch.optim.AdamW, {"foreach": True}, "torch.optim.AdamW, foreach=True"),
        (torch.optim.AdamW, {"foreach": False}, "torch.optim.AdamW, foreach=False"),
        (torch.optim.AdamW, {"fused": True}, "torch.optim.AdamW, fused=True"),
        (fusedopt.AdamW, {"fused": True}, "fusedopt.AdamW"),
        (fusedopt.AdamW, {"foreach": True}, "fusedopt.AdamW"),
        (fusedopt.AdamW, {"fused": False}, "fusedopt.AdamW, fused=False"),
    ],
)
def test_the_own_path_comes_first(cls: Any, options: Any, own: str) -> None:
    answer = train(adamw(cls, **options), steps=80)
    assert names(answer)[0] == own
    standard = {"fusedopt.AdamW", "torch.optim.AdamW", "torch.optim.AdamW, fused=True"}
    assert set(names(answer)) == {own, *standard}


def test_groups_that_differ() -> None:
    p, q = make_params([(3,), (4,)], torch.float32)
    groups = [{"params": [p], "fused": True}, {"params": [q], "lr": torch.tensor(0.1)}]
    answer = train(torch.optim.AdamW(groups))
    assert names(answer)[0] == "torch.optim.AdamW, fused by group"
    assert len(answer.timings) == 4


@pytest.mark.parametrize("cls", ADAMS)
def test_a_limit_of_the_norm(cls: Any) -> None:
    """Of the copies: the optimizer gets none, and gradients keep their bits."""
    measured, plain = adamw(cls), adamw(cls)
    assert train(measured, max_grad_norm=0.5).phase == "clip + step + zero_grad"
    train(plain, measured=False)
    assert_identical(contents(measured), contents(plain))
    assert getattr(measured, "max_grad_norm", None) is None
    assert getattr(measured, "grad_norm", None) is None
    assert train(adamw(cls)).phase == "step + zero_grad"
    assert train(adamw(max_grad_norm=0.5)).phase == "clip + step + zero_grad"


def test_it_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    optimizer = adamw()
    answer = train(optimizer)
    printed = capsys.readouterr().out
    assert printed.count("takes") == printed.count("watches") == 1
    assert train(optimizer) is answer
    assert fusedopt.measure(optimizer) is answer
    assert capsys.readouterr().out == ""


def test_several_optimizers_of_one_loop() -> None:
    first, second = adamw(), adamw(torch.optim.SGD)
    for i in range(CALLS):
        for optimizer in (first, second):
            set_grads(all_params(optimizer), i)
            answer = fusedopt.measure(optimizer)
            optimizer.step()
    assert names(answer)[0] == "torch.optim.SGD"
    assert names(fusedopt.measure(first))[0] == "fusedopt.AdamW"


# --- Whom and what it refuses.


def test_arguments() -> None:
    optimizer = adamw()
    with pytest.raises(TypeError, match="measure takes an optimizer, got Linear"):
        fusedopt.measure(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="measure takes an optimizer, got type"):
        fusedopt.measure(fusedopt.AdamW)  # type: ignore[arg-type]
    for value, error in ((-1.0, ValueError), (float("nan"), ValueError), ("1", TypeError)):
        for name in ("seconds", "max_grad_norm"):
            with pytest.raises(error, match=name):
                fusedopt.measure(optimizer, **{name: value})


@pytest.mark.parametrize("cls", ADAMS)
def test_without_gradients(cls: Any) -> None:
    """An error tells where to call it; called there, it works."""
    optimizer = adamw(cls)
    with pytest.raises(RuntimeError, match="no parameter has a gradient.*before zero_grad"):
        fusedopt.measure(optimizer)
    with pytest.raises(RuntimeError, match="no parameter has a gradient"):
        fusedopt.measure(cls([{"params": []}]))
    assert len(train(optimizer).timings) == 3


def test_steps_without_gradients_are_passed_over() -> None:
    optimizer = adamw()
    for i in range(2 * CALLS):
        set_grads(all_params(optimizer), i)
        if i % 2:
            optimizer.zero_grad()
        answer = fusedopt.measure(optimizer)
        optimizer.step()
    assert len(answer.timings) == 3


class Unknown(Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:
        pass


@pytest.mark.parametrize("cls", [torch.optim.LBFGS, torch.optim.SparseAdam, Unknown])
def test_no_counterpart(cls: Any, capsys: pytest.CaptureFixture[str]) -> None:
    optimizer = cls(make_params())
    answer = fusedopt.measure(optimizer)
    assert fusedopt.measure(optimizer) is answer
    assert answer.timings == []
    assert str(answer) == capsys.readouterr().out.strip() == answer.notes[0]
    assert f"no counterpart: {cls.__name__} is neither" in str(answer)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"differentiable": True}, "differentiable"), ({"params": iter([])}, "iterator")],
)
def test_groups_that_are_refused(options: Any, reason: str) -> None:
    optimizer = adamw()
    optimizer.param_groups[0].update(options)
    assert reason in str(fusedopt.measure(optimizer))


def test_other_devices() -> None:
    p = Parameter(torch.zeros(3, device="meta"))
    assert "tensors on meta" in str(fusedopt.measure(torch.optim.SGD([p])))


@pytest.mark.parametrize("cls", ADAMS)
def test_who_would_see_the_steps_of_copies(cls: Any) -> None:
    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return func(*args, **(kwargs or {}))

    seen: list[Optimizer] = []
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: seen.append(optimizer))
    optimizer = adamw(cls)
    try:
        assert "would see the copies' steps" in str(train(optimizer))
    finally:
        hook.remove()
    assert seen == [optimizer] * CALLS
    with Mode():
        assert "would see the copies' steps" in str(train(adamw(cls)))
    with torch.profiler.profile():
        assert "would see the copies' steps" in str(train(adamw(cls)))


def test_a_profiler_that_comes_later_sees_no_copy() -> None:
    optimizer = adamw()
    train(optimizer, steps=12)
    with torch.profiler.profile() as profiler:
        assert train(optimizer, steps=4) is None
    steps = [e for e in profiler.events() if e.name.startswith("Optimizer.step#")]
    assert len(steps) == 4
    assert train(optimizer).timings
