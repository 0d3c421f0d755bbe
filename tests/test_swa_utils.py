"""Averages of models: torch.optim.swa_utils' values, counts and objects, by one call into C++."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from averages import BF16, FP16, FP32, FP64, FUNCTIONS, Both, Model, fill, ulps_of, values
from helpers import assert_identical, random
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import swa_utils as torchs

from fusedopt import _C
from fusedopt import swa_utils as ours


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("dtype", [FP32, FP64, BF16, FP16], ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_values(function: str, dtype: torch.dtype, use_buffers: bool) -> None:
    both = Both(Model(dtype), function, use_buffers=use_buffers)
    if function == "swa_multi" and use_buffers:  # torch refuses integers, after it has copied
        both.update(1)
        with pytest.raises(RuntimeError, match="Integer division"):
            both.ours.update_parameters(both.model)
        return
    both.update(4)
    both.assert_same(ulps_of(function, dtype))


def test_first_update_copies_bits() -> None:
    model = nn.Linear(3, 3)
    odd = torch.tensor([0x7F800001, 0x7FC12345, -(2**31)] * 3, dtype=torch.int32).view(FP32)
    averaged = ours.AveragedModel(model)
    model.weight.data.copy_(odd.view(3, 3))
    assert _C.update_parameters(averaged, model)
    assert_identical(
        averaged.module.weight.detach().view(torch.int32), odd.view(3, 3).view(torch.int32)
    )


@pytest.mark.parametrize("default", [FP64, BF16], ids=str)
@pytest.mark.parametrize("function", ["default", "swa_multi", "ema"])
def test_default_dtype(function: str, default: torch.dtype) -> None:
    """In which torch computes with n_averaged, and with integers."""
    model = Model(FP64)
    del model.first[1].num_batches_tracked
    if function != "swa_multi":
        model.register_buffer("count", torch.tensor([3, 100_000_007]))
    both = Both(model, function, use_buffers=True)
    torch.set_default_dtype(default)
    try:
        both.update(fast=default is FP64)
    finally:
        torch.set_default_dtype(FP32)
    both.assert_same(ulps_of(function, FP64))


@pytest.mark.parametrize("function", ["default", "ema_multi", "ema"])
def test_integers(function: str) -> None:
    """Computed as torch does, in float32 and rounded towards zero."""
    model = nn.Linear(2, 2)
    model.register_buffer("count", torch.tensor([0, -7, 2**24 + 3, 2**40 + 1]))
    both = Both(model, function, use_buffers=True)
    for t in range(5):
        model.count += torch.tensor([1, -5, 77, 2**33 + t])
        assert _C.update_parameters(both.ours, model)
        both.torchs.update_parameters(model)
    both.assert_same(ulps_of(function, FP32))
    assert_identical(both.ours.module.count, both.torchs.module.count)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.complex64], ids=str)
@pytest.mark.parametrize("use_buffers", [False, True])
def test_other_buffers(dtype: torch.dtype, use_buffers: bool) -> None:
    """Copied as they are; averaged by torch."""
    model = nn.Linear(2, 2)
    model.register_buffer("other", torch.ones(5, dtype=dtype))
    both = Both(model, "ema_multi", use_buffers=use_buffers)
    both.update(1)
    both.update(2, fast=not use_buffers)
    both.assert_same(4)


def channels_last() -> Tensor:
    return random((2, 3, 4, 5), 1, FP32).contiguous(memory_format=torch.channels_last)


LAYOUTS: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
    "channels_last": (channels_last, channels_last),
    "one_channels_last": (lambda: random((2, 3, 4, 5), 1, FP32), channels_last),
    "transposed": (lambda: random((40, 30), 1, FP32).t(), lambda: random((30, 40), 2, FP32)),
    "sliced": (lambda: random((6, 20), 1, FP32)[:, ::2], lambda: random((6, 10), 2, FP32)),
    "expanded": (lambda: random((6, 5), 1, FP32), lambda: random((5,), 2, FP32).expand(6, 5)),
    "empty": (lambda: torch.zeros(0, 3), lambda: torch.zeros(0, 3)),
    "unaligned": (lambda: random((9,), 1, FP32)[1:], lambda: random((10,), 1, FP32)[2:]),
}


@pytest.mark.parametrize("function", ["default", "ema_multi"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, function: str) -> None:
    average, newest = LAYOUTS[layout]
    both = Both(nn.Linear(2, 2), function)
    both.model.register_parameter("p", Parameter(newest()))
    both.model.register_buffer("b", newest())
    for averaged in (both.ours, both.torchs):
        averaged.module.register_parameter("p", Parameter(average()))
        averaged.module.register_buffer("b", average())
    for t in range(3):
        with torch.no_grad():
            memory = both.model.p.untyped_storage()
            memory.copy_(random((len(memory) // 4,), t, FP32).untyped_storage())
        assert _C.update_parameters(both.ours, both.model)
        both.torchs.update_parameters(both.model)
    both.assert_same(ulps_of(function, FP32))


def test_large_model() -> None:
    """Shared among threads, with the interpreter's lock given up."""
    torch.set_num_threads(2)
    model = nn.Linear(1100, 1000)
    model.register_buffer("large", torch.zeros(1_100_000))
    both = Both(model, "default")
    both.update(2)
    both.assert_same()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_16_bit_models_averaged_in_float32(function: str) -> None:
    """As an average in float32 of the same model in float32."""
    model, wide = Model(BF16), Model(FP32)
    mine = ours.AveragedModel(model, **FUNCTIONS[function](ours), dtype=FP32)
    theirs = torchs.AveragedModel(wide, **FUNCTIONS[function](torchs))
    assert {p.dtype for p in mine.parameters()} == {FP32}
    assert mine.module.first[1].num_batches_tracked.dtype is torch.int64
    for t in range(4):
        fill(model, t)
        wide.load_state_dict(model.state_dict())
        assert _C.update_parameters(mine, model)
        theirs.update_parameters(wide)
    for a, b in zip(values(mine)[:-1], values(theirs)[:-1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_bfloat16_average_stands_still_and_float32_does_not() -> None:
    model = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    options = {"multi_avg_fn": ours.get_ema_multi_avg_fn(0.999)}
    narrow = ours.AveragedModel(model, **options)
    wide = ours.AveragedModel(model, **options, dtype=FP32)
    for t in range(1001):
        model.weight.data.fill_(1.5 if t else 1.0)
        narrow.update_parameters(model)
        wide.update_parameters(model)
    assert narrow.module.weight.item() == 1
    assert wide.module.weight.item() == pytest.approx(1.5 - 0.5 * 0.999**1000, rel=1e-4)


def test_float32_average_by_torch() -> None:
    """Where a parameter isn't for our kernels, torch computes in the average's dtype too."""
    model = Model(BF16)
    model.extra = Parameter(torch.ones(3, dtype=torch.complex64))
    both = [
        ours.AveragedModel(m, **FUNCTIONS["ema_multi"](ours), dtype=FP32)
        for m in (model, Model(BF16))
    ]
    for t in range(3):
        fill(model, t)
        assert t == 0 or not _C.update_parameters(both[0], model)
        both[0].update_parameters(model)
        fill(rest := Model(BF16), t)
        for p, q in zip(
            list(rest.parameters()),
            [p for p in model.parameters() if not p.is_complex()],
            strict=True,
        ):
            p.data.copy_(q.data)
        both[1].update_parameters(rest)
    mine = [p for p in both[0].parameters() if not p.is_complex()]
    for p, q in zip(mine, both[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, "float32"])
def test_dtype_that_is_none(dtype: Any) -> None:
    with pytest.raises(TypeError, match="dtype"):
        ours.AveragedModel(nn.Linear(2, 2), dtype=dtype)


def test_unlike_dtypes_are_torchs() -> None:
    both = Both(nn.Linear(2, 2), "ema_multi")
    both.ours.double()
    both.ours.update_parameters(both.model)
    with pytest.raises(RuntimeError, match="dtype"):
        both.ours.update_parameters(both.model)
    both = Both(nn.Linear(2, 2).bfloat16(), "default")
    both.ours.float()
    both.torchs.float()
    both.update(1)
    if torch.__version__.startswith("2.11."):  # it refuses what later ones promote
        for average in (both.ours, both.torchs):
            with pytest.raises(RuntimeError, match="dtype"):
                average.update_parameters(both.model)
        return
    both.update(2, fast=False)
    both.assert_same()


def digests() -> dict[str, str]:
    """What the averages are, in bits."""
    found = {}
    for function, make in FUNCTIONS.items():
        for dtype in (FP32, FP64, BF16, FP16):
            for wide in (None, FP32):
                model = Model(dtype)
                averaged = ours.AveragedModel(model, **make(ours), dtype=wide)
                for t in range(4):
                    fill(model, t)
                    assert _C.update_parameters(averaged, model)
                data = pickle.dumps([p.detach().double().numpy() for p in averaged.parameters()])
                found[f"{function} {dtype} {wide}"] = hashlib.sha256(data).hexdigest()
    return found


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_instruction_sets(isa: str) -> None:
    if isa not in _C.isa_built() or isa not in _C.isa_detected() or isa == _C.isa():
        pytest.skip(f"no other {isa} here")
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "FUSEDOPT_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == digests()


if __name__ == "__main__":
    print(json.dumps(digests()))
