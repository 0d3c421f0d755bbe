"""Training with `fusedopt.measure` in its loop: it keeps its bits, wherever that is called."""

from __future__ import annotations

import sys
import threading
import types
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import CLASS_CASES, DTYPES, Case, over
from helpers import all_params, assert_identical, contents, make_params, set_grads
from loops import ADAMS, BOTH, CALLS, adamw, few_samples, names, notes, train  # noqa: F401
from torch.optim import Optimizer

import fusedopt
from fusedopt import comparison

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
    return contents(optimizer), torch.get_rng_state(), sorted(vars(optimizer))


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
        assert f"torch.optim.{case.name} has no stochastic_rounding" in answer.notes


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
    assert names(answer)[0] == ("fusedopt.AdamW" if base is ADAMS[0] else "torch.optim.AdamW")


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
    optimizer = adamw()

    @torch.compile(backend="eager")
    def update() -> None:
        fusedopt.measure(optimizer)
        optimizer.step()

    for i in range(CALLS):
        set_grads(all_params(optimizer), i)
        update()
    assert len(fusedopt.measure(optimizer).timings) == 3


def test_with_a_scheduler() -> None:
    """It replaces `step`, but only to note that it was called."""
    optimizer = adamw()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for i in range(CALLS):
        set_grads(all_params(optimizer), i)
        answer = fusedopt.measure(optimizer)
        optimizer.step()
        scheduler.step()
    assert notes(answer) == []


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


# --- Where something fails.


def test_what_fails_ends_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr(comparison, "_run_phase", fail)
    assert str(train(adamw())) == "fusedopt.measure: RuntimeError: out of"


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError])
def test_an_output_that_is_closed_ends_no_training(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> None:
        raise error

    monkeypatch.setattr(sys, "stdout", types.SimpleNamespace(write=refuse))
    assert len(train(adamw()).timings) == 3


def test_a_long_error_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no luck " * 1000)

    monkeypatch.setattr(comparison, "_run_phase", fail)
    assert len(str(train(adamw()))) < 250


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
