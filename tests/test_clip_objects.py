"""Norms and clipping of gradients that others share, trace or replace, and odd limits."""

from __future__ import annotations

import contextlib
import threading
import weakref

import pytest
import torch
from gradients import grads_of, make_grads, params_with
from helpers import assert_identical
from torch import Tensor
from torch.nn import Parameter
from torch.nn import utils as torchs

import fusedopt


def test_a_gradient_with_a_graph() -> None:
    """Clipping is no part of it."""
    results = []
    for clip in (fusedopt.clip_grad_norm_, torchs.clip_grad_norm_):
        param = Parameter(torch.ones(3))
        (param**3).sum().backward(create_graph=True)
        assert param.grad is not None and param.grad.requires_grad
        norm = clip([param], 1.0)
        assert not norm.requires_grad
        results.append([param.grad.detach().clone(), norm, param.grad._version])
    assert_identical(results[0][0], results[1][0])
    assert results[0][2] == results[1][2]


def test_a_backward_that_needs_the_gradient_fails() -> None:
    for clip in (fusedopt.clip_grad_norm_, torchs.clip_grad_norm_):
        param = Parameter(torch.ones(3))
        param.grad = torch.full((3,), 4.0)
        weight = torch.ones(3, requires_grad=True)
        product = (weight * param.grad).sum()
        clip([param], 1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()


def test_lazily_copied_memory_is_the_gradients_own() -> None:
    source = torch.full((8,), 3.0)
    param = Parameter(torch.ones(8))
    param.grad = torch._lazy_clone(source)
    fusedopt.clip_grad_norm_([param], 1.0)
    assert_identical(source, torch.full((8,), 3.0))
    torch.testing.assert_close(param.grad.norm(), torch.tensor(1.0))


def test_a_limit_whose_float_changes_a_gradient() -> None:
    """torch converts it in the midst; what it changes is seen, and no memory is overrun."""
    for make in (
        lambda: torch.ones(1000, dtype=torch.half),
        lambda: torch.ones(1).expand(1000),
        lambda: torch.ones(3),
    ):
        for _ in range(30):
            param = Parameter(torch.ones(1000))
            param.grad = torch.ones(1000)

            class Limit:
                def __float__(self) -> float:
                    grad.data = make()  # noqa: B023
                    return 0.1

            grad = param.grad
            try:
                fusedopt.clip_grad_norm_([param], Limit())  # type: ignore[arg-type]
            except RuntimeError as error:
                assert "memory location" in str(error)


def test_another_thread_that_replaces_memory() -> None:
    """The lock is released while the norm of many elements is computed."""
    params = params_with([torch.ones(3_000_000), *(torch.ones(1000) for _ in range(20))])
    grads = [param.grad for param in params[1:]]
    stop = threading.Event()
    # All memory stays: torch's own function may still be writing what has been replaced.
    others = [
        [torch.ones(1000, dtype=dtype) for _ in grads] for dtype in (torch.half, torch.float32)
    ]
    others.append([grad.data for grad in grads])  # type: ignore[union-attr]

    def swap() -> None:
        while not stop.is_set():
            for other in others:
                for grad, memory in zip(grads, other, strict=True):
                    grad.data = memory  # type: ignore[union-attr]

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(20):
            with contextlib.suppress(RuntimeError):  # torch's, of dtypes that change under it
                fusedopt.clip_grad_norm_(params, 1.0)
            with contextlib.suppress(RuntimeError):
                fusedopt.get_total_norm([p.grad for p in params])
    finally:
        stop.set()
        thread.join()


def test_traced_code_computes_its_norm() -> None:
    traced = torch.jit.trace(
        lambda x: x / fusedopt.get_total_norm([x]), torch.ones(3), check_trace=False
    )
    torch.testing.assert_close(traced(2 * torch.ones(3)).norm(), torch.tensor(1.0))


def test_a_limit_that_is_text() -> None:
    """As torch converts it."""
    ours, theirs = params_with(make_grads()), params_with(make_grads())
    fusedopt.clip_grad_norm_(ours, "0.5")  # type: ignore[arg-type]
    torchs.clip_grad_norm_(theirs, "0.5")  # type: ignore[arg-type]
    torch.testing.assert_close(grads_of(ours), grads_of(theirs))


def test_inference_tensors() -> None:
    with torch.inference_mode():
        grads = make_grads()
        assert fusedopt.get_total_norm(grads).is_inference()
        assert torchs.get_total_norm(grads).is_inference()
    for clip in (fusedopt.clip_grad_norm_, torchs.clip_grad_norm_):
        param = Parameter(torch.zeros(5, 7))
        param.grad = grads[0]
        with pytest.raises(RuntimeError, match="[Ii]nference"):
            clip([param], 1.0)


def test_compiled_code_holds_torchs_function() -> None:
    def run(params: list[Parameter]) -> Tensor:
        return fusedopt.clip_grad_norm_(params, 1.0)

    params, expected = params_with(make_grads()), params_with(make_grads())
    norm = torch.compile(run, backend="eager", fullgraph=True)(params)
    torch.testing.assert_close(norm, torchs.clip_grad_norm_(expected, 1.0))
    torch.testing.assert_close(grads_of(params), grads_of(expected))


def test_gradients_are_let_go() -> None:
    params = params_with(make_grads())
    refs = [weakref.ref(grad) for grad in grads_of(params)]
    fusedopt.clip_grad_norm_(params, 1.0)
    for param in params:
        param.grad = None
    assert all(ref() is None for ref in refs)


@pytest.mark.parametrize(
    "name", ["get_total_norm", "clip_grad_norm_", "clip_grads_with_norm_", "clip_grad_value_"]
)
def test_in_the_place_of_torchs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For libraries that call torch.nn.utils' function; what ours leaves to torch's ends there."""
    arguments = {"get_total_norm": (), "clip_grads_with_norm_": (1.0, torch.tensor(5.0))}
    found = []
    for function in (getattr(torchs, name), getattr(fusedopt, name)):
        monkeypatch.setattr(torchs, name, function)
        params = params_with([torch.tensor([3.0, 4.0j])])  # complex: torch's
        given = grads_of(params) if name == "get_total_norm" else params
        with contextlib.suppress(NotImplementedError):  # clamping complex numbers
            result = getattr(torchs, name)(given, *arguments.get(name, (1.0,)))
            found += [] if result is None else [result]
        found += [param.grad for param in params]
    middle = len(found) // 2
    assert_identical(found[:middle], found[middle:])
