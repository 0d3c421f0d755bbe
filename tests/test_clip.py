"""Norms and clipping: torch.nn.utils' results, one value everywhere, and its errors."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import DTYPES, LAYOUTS, Layout, over
from helpers import assert_identical, random
from torch import Tensor
from torch.nn import Parameter
from torch.nn import utils as torchs

import fusedopt

ORDERS = (2.0, 1.0, 0.0, math.inf, -math.inf, 3.0, -1.0, "inf")
SHAPES = ((5, 7), (), (4099,), (3, 2), (1,))


def params_with(grads: list[Tensor]) -> list[Parameter]:
    """Parameters with copies of these gradients, which keep their strides."""
    params = []
    for grad in grads:
        param = Parameter(torch.zeros(grad.shape, dtype=grad.dtype))
        param.grad = grad.clone(memory_format=torch.preserve_format)
        params.append(param)
    return params


def make_grads(dtype: torch.dtype = torch.float32, scale: float = 3.0) -> list[Tensor]:
    return [(random(shape, i) * scale).to(dtype) for i, shape in enumerate(SHAPES)]


def grads_of(params: list[Parameter]) -> list[Tensor | None]:
    return [param.grad for param in params]


def exact_norm(grads: list[Tensor]) -> float:
    """In float64, and at no risk of overflow."""
    return math.hypot(*torch.cat([grad.double().flatten() for grad in grads]).tolist())


@over(DTYPES, "dtype")
@over(ORDERS, "order")
def test_as_torch(order: Any, dtype: torch.dtype) -> None:
    """In 16 bits as torch in float32, because its norm has 16 bits there."""
    wide = dtype if dtype.itemsize > 2 else torch.float32
    grads = make_grads(dtype)
    ours, theirs = params_with(grads), params_with([grad.to(wide) for grad in grads])
    norm = fusedopt.clip_grad_norm_(ours, 1.0, norm_type=order)
    expected = torchs.clip_grad_norm_(theirs, 1.0, norm_type=order)
    rtol = 1e-13 if dtype == torch.float64 else 1e-6 if norm.dtype == wide else 0.01
    torch.testing.assert_close(norm, expected.to(norm.dtype), rtol=rtol, atol=0)
    for p, q in zip(ours, theirs, strict=True):
        assert p.grad is not None and q.grad is not None
        rtol = max(2 * rtol, torch.finfo(dtype).eps)
        torch.testing.assert_close(p.grad, q.grad.to(dtype), rtol=rtol, atol=0)
        assert p.grad._version == q.grad._version


@over(DTYPES, "dtype")
def test_the_norm_is_the_exact_one(dtype: torch.dtype) -> None:
    grads = make_grads(dtype)
    norm = fusedopt.get_total_norm(grads)
    assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert norm.shape == () and not norm.requires_grad
    assert abs(float(norm) / exact_norm(grads) - 1) <= 1e-7


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float16, 6e4),
        (torch.float16, 6e-8),
        (torch.bfloat16, 3e38),
        (torch.float32, 1e30),
        (torch.float32, 1e-45),
        (torch.float64, 1e300),
        (torch.float64, 1e-300),
        (torch.float64, 5e-324),
    ],
)
def test_no_square_overflows(dtype: torch.dtype, value: float) -> None:
    """Where torch's is infinite or 0."""
    grad = torch.full((9,), value, dtype=dtype)
    norm = fusedopt.get_total_norm([grad])
    expected = torch.tensor(3 * float(grad[0]), dtype=norm.dtype)
    torch.testing.assert_close(norm, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("others", [0.0, 1.0, 1e30, -math.inf, math.nan])
@pytest.mark.parametrize("value", [1e200, 1e-200])
@over(DTYPES, "dtype")
def test_no_square_overflows_beside_other_dtypes(
    dtype: torch.dtype, value: float, others: float
) -> None:
    wide = torch.full((5000,), value, dtype=torch.float64)
    grads = [wide, torch.full((5000,), others).to(dtype)]
    norm = fusedopt.get_total_norm(grads)
    torch.testing.assert_close(
        norm,
        torch.tensor(exact_norm(grads), dtype=torch.float64),
        rtol=1e-7,
        atol=0,
        equal_nan=True,
    )


@over(DTYPES, "dtype")
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@over((2.0, 1.0, math.inf), "order")
def test_nonfinite(value: float, order: float, dtype: torch.dtype) -> None:
    grads = make_grads(dtype)
    grads[2][4097] = value
    ours, theirs = params_with(grads), params_with(grads)
    with pytest.raises(RuntimeError) as error:
        fusedopt.clip_grad_norm_(ours, 1.0, order, error_if_nonfinite=True)
    with pytest.raises(RuntimeError) as theirs_error:
        torchs.clip_grad_norm_(theirs, 1.0, order, error_if_nonfinite=True)
    assert str(error.value) == str(theirs_error.value)
    assert_identical(grads_of(ours), grads)
    norm = fusedopt.clip_grad_norm_(ours, 1.0, order)
    expected = torchs.clip_grad_norm_(theirs, 1.0, order)
    assert_identical(norm, expected.to(norm.dtype))
    assert_identical(grads_of(ours), grads_of(theirs))


def test_a_nan_is_seen_wherever_it_is() -> None:
    for order in (2.0, 1.0, math.inf, -math.inf):
        for at in range(40):
            grad = torch.ones(40)
            grad[at] = math.nan
            assert fusedopt.get_total_norm([grad], order).isnan(), (order, at)


@over(LAYOUTS, "layout")
def test_layouts(layout: Layout) -> None:
    values = random(layout.shape, 1, torch.float32) * 5
    ours, theirs = Parameter(values.clone()), Parameter(values.clone())
    ours.grad, theirs.grad = layout.grad(values.clone()), values.clone()
    try:
        expected = torchs.clip_grad_norm_([Parameter(values), theirs], 1.0)
        norm = fusedopt.clip_grad_norm_([Parameter(values), ours], 1.0)
    except RuntimeError as error:  # an expanded gradient can't be scaled in place
        assert "single memory location" in str(error)
        with pytest.raises(RuntimeError, match="single memory location"):
            torchs.clip_grad_norm_([ours], 1.0)
        return
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("least", [0.5, 0.0, math.inf, math.nan, -1.0])
@over(DTYPES, "dtype")
def test_clip_grad_value(dtype: torch.dtype, least: float) -> None:
    grads = make_grads(dtype)
    grads[2][:3] = torch.tensor([math.nan, math.inf, -math.inf])
    ours, theirs = params_with(grads), params_with(grads)
    assert fusedopt.clip_grad_value_(ours, least) is None
    torchs.clip_grad_value_(theirs, least)
    assert_identical(grads_of(ours), grads_of(theirs))


def test_clip_grads_with_norm() -> None:
    for norm in (
        torch.tensor(7.0),
        torch.tensor(7.0, dtype=torch.float64),
        torch.tensor(7.0, dtype=torch.bfloat16),
        torch.tensor(0.5),
        torch.tensor(math.nan),
    ):
        ours, theirs = params_with(make_grads()), params_with(make_grads())
        assert fusedopt.clip_grads_with_norm_(iter(ours), 2, norm) is None
        torchs.clip_grads_with_norm_(theirs, 2, norm)
        assert_identical(grads_of(ours), grads_of(theirs))


def test_a_norm_with_a_dimension_is_torchs_affair() -> None:
    for clip in (fusedopt.clip_grads_with_norm_, torchs.clip_grads_with_norm_):
        with pytest.raises(RuntimeError, match="0 dim"):
            clip(params_with(make_grads()), 2, torch.tensor([7.0]))


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


def test_a_value_beyond_a_dtype_is_refused() -> None:
    for dtype, value in ((torch.float16, 7e4), (torch.float32, 1e39)):
        for clip in (fusedopt.clip_grad_value_, torchs.clip_grad_value_):
            with pytest.raises(RuntimeError, match="overflow"):
                clip(params_with(make_grads(dtype)), value)


def test_a_norm_beyond_float32_is_a_float64() -> None:
    """It isn't infinite, since no gradient is."""
    params = params_with([torch.full((4,), 3e38)])
    norm = fusedopt.clip_grad_norm_(params, 1.0)
    torch.testing.assert_close(
        norm, torch.tensor(2 * float(torch.tensor(3e38)), dtype=torch.float64)
    )
    torch.testing.assert_close(params[0].grad, torch.full((4,), 0.5))


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


_BITS = """
import json, sys, torch, fusedopt
torch.set_num_threads(int(sys.argv[1]))
out = []
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    g = torch.Generator().manual_seed(0)
    grads = [torch.randn(n, generator=g, dtype=torch.float64).to(dtype)
             for n in (1, 7, 8, 9, 4095, 4096, 4097, 300_001)]
    for order in (2.0, 1.0, float("inf"), -float("inf"), 0.0):
        out.append(float(fusedopt.get_total_norm(grads, order)).hex())
    params = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for p, grad in zip(params, grads):
        p.grad = grad.clone()
    fusedopt.clip_grad_norm_(params, 1.0)
    out += [float(p.grad.double().sum()).hex() for p in params]
print(json.dumps(out))
"""


def test_the_same_bits_everywhere() -> None:
    """On all instruction sets, and for any number of threads."""
    found = {}
    for isa in fusedopt._C.isa_detected():
        for threads in ("1", "3"):
            run = subprocess.run(
                [sys.executable, "-c", _BITS, threads],
                env={**os.environ, "FUSEDOPT_CPU_ISA": isa},
                capture_output=True,
                text=True,
                check=True,
            )
            found[isa, threads] = json.loads(run.stdout)
    first = next(iter(found.values()))
    assert all(each == first for each in found.values())
