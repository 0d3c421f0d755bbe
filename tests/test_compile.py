"""`torch.compile`d code that calls `step()`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch._dynamo
from cases import CLASS_CASES, Case, over
from helpers import assert_same, make_params, random, set_grads
from torch.optim import lr_scheduler


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    """Compiled code of one test is none of another's."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@over(CLASS_CASES, "case")
def test_compiled_step(case: Case) -> None:
    """A function of its own around the step: the same result, with a scheduler beside it."""
    params, twin = make_params(), make_params()
    compiled, eager = case.make(params), case.make(twin)
    schedulers = [lr_scheduler.ExponentialLR(o, 0.8) for o in (compiled, eager)]

    @torch.compile(backend="eager")
    def update() -> None:
        compiled.step()

    for t in range(4):
        set_grads(params, t)
        set_grads(twin, t)
        update()
        eager.step()
        for scheduler in schedulers:
            scheduler.step()
    assert_same(compiled, eager, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_training_loop(backend: str) -> None:
    """Forward, backward and step in one compiled function."""
    case = next(c for c in CLASS_CASES if c.name == "AdamW")
    results = []
    for compile_it in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3, dtype=torch.float64)
        optimizer = case.make(model.parameters())

        def train(x: torch.Tensor, model=model, optimizer=optimizer) -> torch.Tensor:  # type: ignore[no-untyped-def]
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        run = torch.compile(train, backend=backend) if compile_it else train
        losses = [run(random((5, 4), t)).item() for t in range(4)]
        results.append((losses, optimizer))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-12)
    assert_same(results[1][1], results[0][1])


def test_compiled_bound_method() -> None:
    """`torch.compile(optimizer.step)`, as torch's tutorial does it."""
    case = CLASS_CASES[0]
    params, twin = make_params(), make_params()
    optimizer, expected = case.make(params), case.make(twin)
    compiled = torch.compile(optimizer.step, backend="eager")
    for t in range(3):
        set_grads(params, t)
        set_grads(twin, t)
        compiled()
        expected.step()
    assert_same(optimizer, expected, rtol=0, atol=0)


def test_compiled_step_with_hooks_and_closure() -> None:
    """Hooks fire once; the closure's result comes back."""
    case = CLASS_CASES[-1]
    params = make_params()
    optimizer = case.make(params)
    set_grads(params, 0)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda o, a, k: calls.append("pre"))
    optimizer.register_step_post_hook(lambda o, a, k: calls.append("post"))

    def closure() -> float:
        calls.append("closure")
        return 1.5

    result = torch.compile(lambda: optimizer.step(closure), backend="eager")()
    assert result == 1.5
    assert calls == ["pre", "closure", "post"]
