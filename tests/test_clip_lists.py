"""Norms and clipping of whatever torch.nn.utils takes for a list of tensors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from gradients import grads_of, make_grads, params_with
from helpers import assert_identical
from torch import Tensor
from torch.nn import Parameter
from torch.nn import utils as torchs

import fusedopt


def forms(params: list[Parameter]) -> Iterator[Any]:
    yield params
    yield tuple(params)
    yield (param for param in params)
    yield dict.fromkeys(params)
    yield params[2]


def test_every_form_of_a_list() -> None:
    for ours, theirs in zip(
        forms(params_with(make_grads())), forms(params_with(make_grads())), strict=True
    ):
        torch.testing.assert_close(
            fusedopt.clip_grad_norm_(ours, 1.0), torchs.clip_grad_norm_(theirs, 1.0)
        )
    assert_identical(fusedopt.get_total_norm([]), torchs.get_total_norm([]))
    assert_identical(fusedopt.clip_grad_norm_([Parameter(torch.ones(2))], 1.0), torch.tensor(0.0))


def test_an_empty_generator_warns() -> None:
    for clip in (fusedopt.clip_grad_norm_, torchs.clip_grad_norm_):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            clip((p for p in ()), 1.0)
        assert [w.filename for w in caught] == [__file__]
        assert "empty generator" in str(caught[0].message)


def both(make: Callable[[], list[Any]], **kwargs: Any) -> tuple[list[Any], list[Any]]:
    """What clipping makes of the same list, by ours and by torch's: results or errors."""
    results = []
    for clip in (fusedopt.clip_grad_norm_, torchs.clip_grad_norm_):
        params = make()
        try:
            result: Any = clip(params, **{"max_norm": 1.0, **kwargs})
        except Exception as error:
            result = type(error)
        grads = [getattr(p, "grad", None) for p in params]
        results.append([result, [g.to_dense() if isinstance(g, Tensor) else g for g in grads]])
    return results[0], results[1]


def sparse() -> list[Any]:
    params = params_with(make_grads())
    params[0].grad = params[0].grad.to_sparse()  # type: ignore[union-attr]
    return params


def complex_() -> list[Any]:
    params = params_with(make_grads())
    param = Parameter(torch.ones(3, dtype=torch.complex64))
    param.grad = torch.full((3,), 2 + 1j)
    return [*params, param]


def twice() -> list[Any]:
    params = params_with(make_grads())
    return [*params, params[0]]


def views_of_one_buffer() -> list[Any]:
    params = params_with(make_grads())
    flat = torch.cat([grad.flatten() for grad in make_grads()])
    at = 0
    for param in params:
        param.grad = flat[at : at + param.numel()].view(param.shape)
        at += param.numel()
    return params[::-1]


def overlapping() -> list[Any]:
    params = params_with([torch.ones(6), torch.ones(6)])
    buffer = torch.arange(9.0)
    params[0].grad, params[1].grad = buffer[:6], buffer[3:]
    return params


def several_dtypes() -> list[Any]:
    return [p for dtype in (torch.float32, torch.float64) for p in params_with(make_grads(dtype))]


def with_empty() -> list[Any]:
    return params_with([*make_grads(), torch.zeros(0, 3)])


def no_tensor() -> list[Any]:
    return [*params_with(make_grads()), "text"]


@pytest.mark.parametrize(
    "make",
    [
        sparse,
        complex_,
        twice,
        views_of_one_buffer,
        overlapping,
        several_dtypes,
        with_empty,
        no_tensor,
    ],
    ids=lambda make: make.__name__,
)
def test_odd_lists(make: Callable[[], list[Any]]) -> None:
    for order in (2.0, math.inf, 0.0):
        ours, theirs = both(make, norm_type=order)
        if isinstance(theirs[0], type):
            assert ours[0] is theirs[0]
        else:
            torch.testing.assert_close(ours, theirs)


def test_bad_numbers_change_nothing() -> None:
    for kwargs in ({"max_norm": "much"}, {"max_norm": None}, {"norm_type": "two"}):
        params = params_with(make_grads())
        with pytest.raises((TypeError, ValueError)):
            fusedopt.clip_grad_norm_(params, **{"max_norm": 1.0, **kwargs})
        assert_identical(grads_of(params), make_grads())


class Noted(Tensor):
    """A tensor whose operators are its class's affair."""

    seen: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(getattr(func, "__name__", ""))
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_subclass_sees_torchs_operators() -> None:
    seen = []
    for clip in (fusedopt.clip_grad_norm_, torchs.clip_grad_norm_):
        param = Parameter(torch.ones(3))
        param.grad = torch.full((3,), 2.0).as_subclass(Noted)  # type: ignore[assignment]
        Noted.seen.clear()
        clip([param], 1.0)
        seen.append([name for name in Noted.seen if name != "__get__"])
        assert abs(param.grad.norm().item() - 1) < 1e-6
    assert seen[0] == seen[1] and "linalg_vector_norm" in seen[0]


def test_a_mode_sees_torchs_operators() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.calls += 1
            return func(*args, **(kwargs or {}))

    with Count() as count:
        fusedopt.clip_grad_norm_(params_with(make_grads()), 1.0)
    assert count.calls > 0
