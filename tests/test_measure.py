"""`fusedopt.measure`: what it answers, whom it refuses, and that training keeps its bits."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import CLASS_CASES, DTYPES, Case, over
from helpers import all_params, assert_identical, contents, make_params, set_grads
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

import fusedopt
from fusedopt import comparison, turns

measuring = sys.modules["fusedopt.measure"]
BOTH = [
    pytest.param(case, module, id=f"{module.__name__}-{case.name}")
    for case in CLASS_CASES
    for module in (fusedopt, torch.optim)
    if module is fusedopt or case.has_fallback
]
ADAMS = [fusedopt.AdamW, torch.optim.AdamW]
CALLS = 60  # more than are needed with the fixture below


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_MOST", 4)
    monkeypatch.setattr(comparison, "ROW", 3)
    monkeypatch.setattr(measuring, "ROW", 3)


def train(optimizer: Optimizer, steps: int = CALLS, measured: bool = True, **options: Any) -> Any:
    """A loop; returns what `measure` returned at last."""
    answer = None
    for i in range(steps):
        set_grads(all_params(optimizer), i)
        if measured:
            answer = fusedopt.measure(optimizer, **options)
        optimizer.step()
        optimizer.zero_grad()
    return answer


def adamw(cls: Any = fusedopt.AdamW, **options: Any) -> Any:
    return cls(make_params(dtype=torch.float32), **options)


def names(answer: Any) -> list[str]:
    return [timing.name for timing in answer.timings]


# --- Training keeps its bits.


def followed(optimizer: Optimizer, measured: bool) -> Any:
    """Trains, and returns all bits; each call must leave every object in its place."""
    params = all_params(optimizer)
    for i in range(CALLS):
        set_grads(params, i)
        seen = [objects(optimizer), contents(optimizer)]
        answer = fusedopt.measure(optimizer) if measured else None
        assert objects(optimizer) == seen[0]
        assert_identical(contents(optimizer), seen[1])
        optimizer.step()
    assert not measured or answer.timings or answer.notes
    return (
        contents(optimizer),
        torch.get_rng_state(),
        set(vars(optimizer)) - {optimizer_plan(optimizer)},
    )


def optimizer_plan(optimizer: Any) -> str:
    return getattr(optimizer, "_plan_key", "")


def objects(optimizer: Optimizer) -> list[Any]:
    """Identities and versions of what a step may replace or write."""
    found: list[Any] = [id(optimizer.state), len(optimizer.state), id(optimizer.param_groups)]
    for p in all_params(optimizer):
        state = optimizer.state.get(p, {})
        found += [id(p), p._version, id(p.grad), p.grad._version, id(p.grad_fn), p.is_leaf]
        found += [(k, id(v), getattr(v, "_version", None)) for k, v in state.items()]
    return found


@over(DTYPES, "dtype")
@pytest.mark.parametrize(("case", "module"), BOTH)
def test_training_keeps_its_bits(case: Case, module: ModuleType, dtype: torch.dtype) -> None:
    made = [case.make(make_params(dtype=dtype), module) for _ in range(2)]
    measured, plain = followed(made[0], True), followed(made[1], False)
    assert_identical(list(measured[0]), list(plain[0]))
    assert torch.equal(measured[1], plain[1])
    assert measured[2] == plain[2]


@over(CLASS_CASES, "case")
def test_with_options_of_precision_and_a_limit(case: Case) -> None:
    def make() -> Any:
        options = {"stochastic_rounding": True, "max_grad_norm": 0.1}
        return case.make(make_params(dtype=torch.bfloat16), **options)

    measured, plain = make(), make()
    answer = train(measured)
    train(plain, measured=False)
    assert_identical(contents(measured), contents(plain))
    assert_identical(measured.grad_norm, plain.grad_norm)
    assert names(answer) == [f"fusedopt.{case.name}"]
    assert answer.phase == "clip + step + zero_grad"
    if case.has_fallback:
        assert f"torch.optim.{case.name}: it has no stochastic_rounding" in answer.notes


@pytest.mark.parametrize("cls", ADAMS)
@pytest.mark.parametrize("value", [1.0, float("inf")])
def test_a_gradient_scaler_skips_as_without(cls: Any, value: float) -> None:
    found = []
    for measured in (True, False):
        params = make_params(dtype=torch.float32)
        optimizer, scaler = cls(params), torch.amp.GradScaler("cpu", init_scale=8.0)
        for i in range(CALLS):
            loss = sum(p.square().sum() for p in params) * (value if i % 5 == 2 else 1.0)
            scaler.scale(loss).backward()
            if measured:
                answer = fusedopt.measure(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        found.append((contents(optimizer), scaler.state_dict()))
    assert_identical(list(found[0]), list(found[1]))
    assert len(answer.timings) == 3


@pytest.mark.parametrize("cls", ADAMS)
def test_no_hook_is_called_for_a_copy(cls: Any) -> None:
    optimizer, calls = adamw(cls), []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.register_state_dict_pre_hook(lambda *_: calls.append("state"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("load"))
    for p in all_params(optimizer):
        p.register_hook(lambda grad: calls.append("gradient"))
        p.register_post_accumulate_grad_hook(lambda p: calls.append("accumulated"))
    answer = train(optimizer)
    assert calls == ["before", "after"] * CALLS
    assert "its step hooks aren't timed" in answer.notes
    assert len(answer.timings) == 3


@pytest.mark.parametrize("cls", ADAMS)
def test_from_a_hook(cls: Any) -> None:
    optimizer, answers = adamw(cls), []
    optimizer.register_step_pre_hook(lambda o, *_: answers.append(fusedopt.measure(o)))
    train(optimizer, measured=False)
    assert len(answers[-1].timings) == 3


@pytest.mark.parametrize("base", ADAMS)
def test_no_code_of_a_subclass_runs_for_a_copy(base: Any) -> None:
    calls = []

    class Mine(base):
        def __init__(self, params: Any, needed: int) -> None:
            calls.append("init")
            super().__init__(params)

        def step(self, closure: Any = None) -> Any:
            calls.append("step")
            return super().step(closure)

        def __setstate__(self, state: Any) -> None:
            calls.append("setstate")
            super().__setstate__(state)

    answer = train(Mine(make_params(), 1))
    assert calls == ["init"] + ["step"] * CALLS
    assert any("what Mine adds isn't timed" in note for note in answer.notes)
    assert (
        answer.timings[0].name
        == f"{base.__module__.split('.')[0].replace('torch', 'torch.optim')}.AdamW"
    )


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


def test_copies_that_take_longer_than_the_loop(clock: Any) -> None:
    clock.phases = {"torch": 0.5, "fusedopt": 0.25, "torch-fused": 1.0}
    answer = train(adamw())
    assert answer.timings[0].share == 1.0
    assert "once in a step" in answer.notes[-1]


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
    assert answer.notes == ([] if case.has_fallback else [told])


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
    plain = adamw(cls)
    assert train(plain, max_grad_norm=0.5).phase == "clip + step + zero_grad"
    assert getattr(plain, "max_grad_norm", None) is None
    assert getattr(plain, "grad_norm", None) is None
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


def test_what_fails_ends_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr(comparison, "_run_phase", fail)
    assert str(train(adamw())) == "fusedopt.measure: RuntimeError: out of"


def test_after_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins the comparison again."""
    optimizer, run, calls = adamw(), comparison._run_phase, []

    def interrupted(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 9:
            raise KeyboardInterrupt
        run(*args)

    monkeypatch.setattr(comparison, "_run_phase", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(optimizer)
    assert train(optimizer).steps == 4


# --- Where it is called.


@pytest.mark.parametrize("cls", ADAMS)
@pytest.mark.parametrize(
    "context",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.device("meta"),
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.random.fork_rng(),
    ],
)
def test_within_contexts(cls: Any, context: Any) -> None:
    optimizer = adamw(cls)
    torch.set_default_dtype(torch.float64)
    for i in range(CALLS):
        set_grads(all_params(optimizer), i)
        with context():
            answer = fusedopt.measure(optimizer)
        optimizer.step()
    assert len(answer.timings) == 3


def test_within_compiled_code() -> None:
    optimizer, answers = adamw(), []

    @torch.compile(backend="eager")
    def update() -> None:
        answers.append(fusedopt.measure(optimizer))
        optimizer.step()

    for i in range(CALLS):
        set_grads(all_params(optimizer), i)
        update()
    assert len(answers[-1].timings) == 3


def test_with_a_scheduler() -> None:
    """It replaces `step`, but only to note that it was called."""
    optimizer = adamw()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for i in range(CALLS):
        set_grads(all_params(optimizer), i)
        answer = fusedopt.measure(optimizer)
        optimizer.step()
        scheduler.step()
    assert answer.notes == []


def test_threads() -> None:
    """Each has its loop; and all have one together."""
    own, shared = [adamw() for _ in range(4)], adamw(torch.optim.AdamW)
    set_grads(all_params(shared), 0)
    failed: list[BaseException] = []

    def run(optimizer: Any) -> None:
        try:
            for i in range(CALLS):
                set_grads(all_params(optimizer), i)
                fusedopt.measure(optimizer)
                fusedopt.measure(shared)
                optimizer.step()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(optimizer,)) for optimizer in own]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert all(len(fusedopt.measure(optimizer).timings) == 3 for optimizer in (*own, shared))
