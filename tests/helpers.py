"""Making parameters and gradients, and comparing two optimizers and all that belongs to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any

import pytest
import torch
from cases import SCALARS, Case
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt

SHAPES: tuple[tuple[int, ...], ...] = ((5, 7), (13,), (), (2, 3, 4))
Make = Callable[..., Optimizer]


def random(shape: Iterable[int], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers that depend on the seed only; the same values in every dtype, but rounded."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(dtype)


def make_params(
    shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[Parameter]:
    """One parameter per shape."""
    return [Parameter(random(s, 1000 * seed + i, dtype)) for i, s in enumerate(shapes)]


def set_grads(params: Iterable[Tensor], seed: int) -> None:
    """Gives each parameter a new gradient."""
    for i, p in enumerate(params):
        p.grad = random(p.shape, 7919 * (seed + 1) + i, p.dtype)


def step(optimizer: Optimizer, seed: int, params: Iterable[Tensor] | None = None) -> None:
    """Gives these parameters (default: all) a gradient, the others none, and steps."""
    everything = all_params(optimizer)
    for p in everything:
        p.grad = None
    set_grads(everything if params is None else params, seed)
    optimizer.step()


def all_params(optimizer: Optimizer) -> list[Tensor]:
    """The parameters of all groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def kernels(optimizer: Optimizer) -> set[str]:
    """Which kernels `explain` says the parameters use."""
    return {row.kernel for row in fusedopt.explain(optimizer).rows}


def contents(optimizer: Optimizer) -> list[Any]:
    """Copies of all values that a step may change, in a fixed order."""
    found: list[Any] = []
    for group in optimizer.param_groups:
        found.append({k: _copy(v) for k, v in group.items() if k != "params"})
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            found.append(_copy(p.detach()))
            found.append(_copy(p.grad))
            found.append({k: _copy(v) for k, v in state.items()})
    return found


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def assert_unchanged(optimizer: Optimizer, before: list[Any]) -> None:
    """The optimizer has exactly these contents: the same keys, the same bits."""
    assert_identical(contents(optimizer), before)


def assert_identical(ours: Any, theirs: Any, where: str = "") -> None:
    """The same structure of the same tensors, bit for bit (NaN equals NaN)."""
    if isinstance(theirs, Tensor):
        assert isinstance(ours, Tensor), where
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=0, equal_nan=True, msg=lambda m: f"{where}: {m}"
        )
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs:
            assert_identical(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_identical(a, b, f"{where}[{i}]")
    else:
        assert ours == theirs, where


def assert_same(
    ours: Optimizer, theirs: Optimizer, rtol: float = 1e-11, atol: float = 1e-12
) -> None:
    """Equal options; close parameters and gradients; state of equal keys and dtypes, and close."""
    close = partial(torch.testing.assert_close, rtol=rtol, atol=atol, equal_nan=True)
    assert len(ours.param_groups) == len(theirs.param_groups)
    assert len(ours.state) == len(theirs.state)
    for i, (a, b) in enumerate(zip(ours.param_groups, theirs.param_groups, strict=True)):
        assert a.keys() == b.keys(), i
        for key in b.keys() - {"params", "fused", "foreach"}:
            assert_identical(a[key], b[key], f"param_groups[{i}][{key!r}]")
        for j, (p, q) in enumerate(zip(a["params"], b["params"], strict=True)):
            where = f"param_groups[{i}]['params'][{j}]"
            label = partial("{0}: {1}".format, where)
            close(p, q, msg=label)
            assert (p.grad is None) == (q.grad is None), where
            if q.grad is not None:
                close(p.grad, q.grad, msg=label)
            p_state = ours.state.get(p, {})
            q_state = theirs.state.get(q, {})
            assert list(p_state) == list(q_state), where  # the same keys in the same order
            for key, value in q_state.items():
                close(p_state[key], value, msg=partial("{0} {1}: {2}".format, where, key))


@cache
def torchs_adagrad_makes_state_late() -> bool:
    """Whether it steps parameters that came after its constructor: 2.13's does, 2.11's doesn't."""
    optimizer = torch.optim.Adagrad([torch.zeros(1, requires_grad=True)])
    optimizer.state.clear()
    try:
        step(optimizer, 0)
    except KeyError:
        return False
    return True


def twins(case: Case, scenario: Callable[[Make], Optimizer]) -> tuple[Optimizer, Optimizer]:
    """Plays a scenario with our class and with torch's, and compares what they leave behind."""
    ours = scenario(partial(case.make, module=fusedopt))
    try:
        theirs = scenario(partial(case.make, module=torch.optim))
    except KeyError:
        if not case.makes_state_early or torchs_adagrad_makes_state_late():
            raise
        pytest.skip("this torch's Adagrad makes state in its constructor only; ours has played it")
    assert type(ours).__module__.split(".")[0] == "fusedopt"
    assert_same(ours, theirs)
    return ours, theirs


def left_to_torch(case: Case, scenario: Callable[[Make], Optimizer], reason: str) -> None:
    """Plays a scenario in which no kernel can step something: torch steps it, or an error says why.

    The error is for optimizers that torch hasn't got.
    """
    if case.has_fallback:
        twins(case, scenario)
        return
    with pytest.raises(RuntimeError, match=f"has kernels only.*{reason}"):
        scenario(partial(case.make, module=fusedopt))


def same_bits(case: Case, scenario: Callable[[Make], Optimizer]) -> None:
    """Plays a scenario twice with our class; the second run must give the same bits."""
    first, second = scenario(case.make), scenario(case.make)
    assert_identical(contents(first), contents(second))


def undo_rounding(optimizer: Optimizer) -> None:
    """Gives single numbers of a state that torch has loaded, and cast, their float32 back."""
    for state in optimizer.state.values():
        state.update({k: state[k].float() for k in state if k in SCALARS - {"step"}})
