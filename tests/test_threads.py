"""Optimizers in several Python threads."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import CLASS_CASES, MAIN_CASES, Case, case, over
from helpers import assert_identical, contents, make_params, random, set_grads, step
from torch.nn import Parameter


def run_threads(jobs: list[Callable[[], None]]) -> None:
    """Runs all jobs at once, and raises what one of them raised."""
    errors: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive(), "deadlock"
    if errors:
        raise errors[0]


def test_several_optimizers_in_several_threads() -> None:
    """Each gives the bits it gives alone."""
    shapes = [(40_000,), (7, 9), (3,)]

    def train(c: Case, results: dict[str, list]) -> None:
        optimizer = c.make(make_params(shapes, torch.float32))
        for t in range(6):
            step(optimizer, t)
        results[c.id] = contents(optimizer)

    alone: dict[str, list] = {}
    together: dict[str, list] = {}
    torch.set_num_threads(2)
    for c in MAIN_CASES:
        train(c, alone)
    run_threads([lambda c=c: train(c, together) for c in MAIN_CASES])
    for c in MAIN_CASES:
        assert_identical(together[c.id], alone[c.id], c.id)


@over(CLASS_CASES, "case")
def test_one_optimizer_in_two_threads(case: Case) -> None:
    """A mistake of the user's; it may raise or mix up steps, but never crash or hang."""
    params = make_params([(2000,), (7, 9), (3,)])
    optimizer = case.make(params)
    set_grads(params, 0)

    def many_steps() -> None:
        for _ in range(100):
            with contextlib.suppress(RuntimeError, KeyError):
                optimizer.step()

    def edits() -> None:
        for t in range(100):  # not of gradients: that race is torch's own, and crashes torch's step
            optimizer.state.pop(params[2], None)
            optimizer.param_groups[0]["lr"] = 0.01 * t

    run_threads([many_steps, many_steps, edits])
    set_grads(params, 1)
    optimizer.step()


def test_step_in_a_thread_of_its_own() -> None:
    """Made in one thread, stepped in another, as data-parallel trainers do."""
    optimizer = case("AdamW-all").make(make_params())
    expected = case("AdamW-all").make(make_params())
    for t in range(3):
        run_threads([lambda t=t: step(optimizer, t)])
        step(expected, t)
    assert_identical(contents(optimizer), contents(expected))


def test_other_threads_run_meanwhile() -> None:
    """The interpreter's lock is given up during a long step, or soon after it."""
    p = Parameter(torch.zeros(1_000_000))
    p.grad = torch.ones_like(p)
    optimizer = case("AdamW-all").make([p])
    stop = threading.Event()
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while not stop.is_set():
            ticks += 1

    def work() -> None:
        for _ in range(20):
            optimizer.step()
        stop.set()

    run_threads([tick, work])
    assert ticks > 0


def test_step_inside_autograd_threads() -> None:
    """Optimizer in backward: hooks step each parameter as soon as its gradient is there."""
    torch.manual_seed(0)
    results = []
    for in_backward in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4)))
        params = list(model.parameters())
        optimizers = {p: case("AdamW-all").make([p]) for p in params}
        if in_backward:

            def hook(p: torch.Tensor, optimizers=optimizers) -> None:  # type: ignore[no-untyped-def]
                optimizers[p].step()
                optimizers[p].zero_grad()

            for p in params:
                p.register_post_accumulate_grad_hook(hook)
        for t in range(3):
            model(random((5, 8), t, torch.float32)).square().sum().backward()
            if not in_backward:
                for optimizer in optimizers.values():
                    optimizer.step()
                    optimizer.zero_grad()
        results.append([p.detach() for p in params])
    assert_identical(results[1], results[0])


@pytest.mark.parametrize("threads", [1, 2])
def test_set_num_threads_between_steps(threads: int) -> None:
    optimizer = case("Adam-all").make(make_params([(50_000,)], torch.float32))
    expected = case("Adam-all").make(make_params([(50_000,)], torch.float32))
    for t in range(4):
        torch.set_num_threads(threads + t % 2)
        step(optimizer, t)
        torch.set_num_threads(1)
        step(expected, t)
    assert_identical(contents(optimizer), contents(expected))


# Each thread draws from a generator of its own. The seconds are the most that a busy machine takes.
@pytest.mark.parametrize("seed", range(3))
def test_steps_while_everything_around_them_moves(seed: int) -> None:
    command = [sys.executable, str(Path(__file__).with_name("stress.py"))]
    limits = ["--seed", str(seed), "--steps", "1000", "--seconds", "60"]
    done = subprocess.run([*command, *limits], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@over([c for c in CLASS_CASES if "lr" in c.options], "case")
def test_gradients_that_autograd_replaces_meanwhile(case: Case) -> None:
    """A graph of gradients replaces `grad` without the interpreter's lock. Torch: exact."""
    params = [Parameter(torch.zeros(64)) for _ in range(50)]
    still = {k: 0.0 for k in ("lr", "weight_decay") if k in case.options}
    optimizer = case.make(params, **still)
    for p in params:
        p.grad = torch.ones_like(p)
    stop = threading.Event()

    def replace() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(150):
                for p in params:  # keeps no graph: each gradient is a new tensor, and none a cycle
                    p.grad = torch.ones_like(p)
                sum((p * 1.0).sum() for p in params).backward(create_graph=True)
        stop.set()

    def steps() -> None:
        while not stop.is_set():
            optimizer.step()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        run_threads([replace, steps])
    finally:
        sys.setswitchinterval(interval)
    for p in params:
        assert torch.equal(p.detach(), torch.zeros(64))
        for value in optimizer.state[p].values():
            if isinstance(value, torch.Tensor) and value.shape == p.shape:
                assert bool((value.abs() <= 1e6).all())
