"""The same bits for any number of threads, split into groups or tensors, and instruction set."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from cases import CASES, DTYPES, MAIN_CASES, SCALARS, Case, over, sliced, transposed
from helpers import assert_identical, contents, make_params, random
from torch import Tensor
from torch.nn import Parameter

import fusedopt

STEPS = 3
BF16, FP32 = torch.bfloat16, torch.float32
# How numbers may be stored: the parameters' dtype, and options.
MODES: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "rounded": (BF16, {"stochastic_rounding": True}),
    "float32_state": (BF16, {"state_dtype": FP32, "stochastic_rounding": True}),
    "halves": (BF16, {"master_weights": True}),
    "halves_rounded": (BF16, {"master_weights": True, "stochastic_rounding": True}),
    "bfloat16_state": (FP32, {"state_dtype": BF16}),
    "bfloat16_state_rounded": (FP32, {"state_dtype": BF16, "stochastic_rounding": True}),
}
LARGE = 200_003  # enough for several threads, and no multiple of anything


def values(dtype: torch.dtype, size: int, t: int) -> Tensor:
    """Random numbers, with some special values among them where the size allows."""
    out = random((size,), t, dtype)
    out[::97] = 0
    return out


def run(
    case: Case, params: list[Parameter], grads: list[list[Tensor]], groups: bool, **options: Any
) -> list:
    """Steps over these gradients; the parameters in one group, or in one each."""
    optimizer = case.make([{"params": [p]} for p in params] if groups else params, **options)
    for each in grads:
        for p, grad in zip(params, each, strict=True):
            p.grad = grad
        optimizer.step()
    found = [p.detach() for p in params]
    for p in params:
        found += [v for k, v in optimizer.state.get(p, {}).items() if k not in SCALARS]
    return found


@over(DTYPES, "dtype")
@over(MAIN_CASES, "case")
def test_number_of_threads(case: Case, dtype: torch.dtype) -> None:
    start = values(dtype, LARGE, 0)
    grads = [[values(dtype, LARGE, t + 1), values(dtype, 333, t)] for t in range(2)]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        params = [Parameter(start.clone()), Parameter(values(dtype, 333, 9))]
        results.append(run(case, params, grads, groups=False))
    assert_identical(results[1], results[0], "2 threads")
    assert_identical(results[2], results[0], "3 threads")


@over(MODES, "mode")
@over(MAIN_CASES, "case")
def test_number_of_threads_with_noise(case: Case, mode: str) -> None:
    dtype, options = MODES[mode]
    grads = [[values(dtype, LARGE, t + 1)] for t in range(2)]
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(run(case, [Parameter(values(dtype, LARGE, 0))], grads, False, **options))
    assert_identical(results[1], results[0], "3 threads")


@over(MAIN_CASES, "case")
def test_number_of_threads_with_strides(case: Case) -> None:
    """The strided way through memory is shared among threads too."""
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        params = [
            Parameter(sliced(random((301, 303), 0, torch.float32))),
            Parameter(transposed(random((301, 303), 1, torch.float32))),
        ]
        grads = [[random((301, 303), t, torch.float32)] * 2 for t in range(2)]
        results.append(run(case, params, grads, groups=False))
    assert_identical(results[1], results[0], "2 threads")
    assert_identical(results[2], results[0], "3 threads")


@over(DTYPES, "dtype")
@over(CASES, "case")
def test_split_into_groups(case: Case, dtype: torch.dtype) -> None:
    results = []
    for groups in (False, True):
        params = make_params([(37,), (5, 7), (), (1200,), (8,)], dtype)
        grads = [[random(p.shape, 31 * t + i, dtype) for i, p in enumerate(params)] for t in (1, 2)]
        results.append(run(case, params, grads, groups))
    assert_identical(results[1], results[0])


@over(DTYPES, "dtype")
@over(MAIN_CASES, "case")
def test_one_tensor_cut_into_many(case: Case, dtype: torch.dtype) -> None:
    """Where an element stands in its tensor, and in a vector register, has no influence."""
    size = 5003
    cuts = [1, 2, 3, 5, 7, 64, 128, 129, 1000, 31, 3633]
    start, grads = values(dtype, size, 0), [values(dtype, size, t + 1) for t in range(STEPS)]
    whole = run(case, [Parameter(start.clone())], [[g] for g in grads], groups=False)
    parts = run(
        case,
        [Parameter(part.clone()) for part in start.split(cuts)],
        [list(g.split(cuts)) for g in grads],
        groups=False,
    )
    states = len(whole) - 1
    joined = [torch.cat(parts[: len(cuts)])]
    for s in range(states):
        joined.append(torch.cat(parts[len(cuts) + s :: states]))
    assert_identical(joined, whole)


@over(MAIN_CASES, "case")
def test_order_of_parameters(case: Case) -> None:
    results = []
    for order in (1, -1):
        params = make_params([(37,), (500,), (6, 6)])
        optimizer = case.make(params[::order])
        for t in range(STEPS):
            for i, p in enumerate(params):
                p.grad = random(p.shape, 10 * t + i)
            optimizer.step()
        results.append([p.detach() for p in params])
    assert_identical(results[1], results[0])


@over(CASES, "case")
def test_two_runs(case: Case) -> None:
    results = []
    for _ in range(2):
        params = make_params(dtype=torch.float32)
        optimizer = case.make(params)
        for t in range(STEPS):
            for p in params:
                p.grad = random(p.shape, t, torch.float32)
            optimizer.step()
        results.append(contents(optimizer))
    assert_identical(results[1], results[0])


def digests() -> dict[str, str]:
    """A hash over all results of every case and dtype, on the active instruction set."""
    found = {}
    every = [(case, str(dtype), dtype, {}) for case in CASES for dtype in DTYPES]
    every += [(case, mode, *MODES[mode]) for case in MAIN_CASES for mode in MODES]
    for case, label, dtype, options in every:
        sizes = (1, 3, 127, 2311)
        params = [Parameter(values(dtype, s, i)) for i, s in enumerate(sizes)]
        params.append(Parameter(transposed(random((9, 13), 5, dtype))))
        grads = [
            [
                *(values(dtype, s, 10 * t + i) for i, s in enumerate(sizes)),
                sliced(random((9, 13), t, dtype)),
            ]
            for t in range(STEPS)
        ]
        digest = hashlib.sha256()
        for tensor in run(case, params, grads, groups=False, **options):
            data = tensor.contiguous().view(-1).view(torch.uint8)
            digest.update(data.numpy().tobytes())
        found[f"{case.id}-{label}"] = digest.hexdigest()
    return found


OTHER_ISAS = [isa for isa in ("baseline", "avx2", "avx512") if isa != fusedopt._C.isa()]


@pytest.fixture(scope="module")
def own_digests() -> dict[str, str]:
    """The digests of this process."""
    return digests()


@pytest.mark.parametrize("isa", OTHER_ISAS)
def test_instruction_sets(isa: str, own_digests: dict[str, str]) -> None:
    """Against this process, which has the one that is left."""
    if isa not in fusedopt._C.isa_built():
        pytest.skip(f"no {isa} kernels in this build")
    if isa not in fusedopt._C.isa_detected():
        pytest.skip(f"this processor has no {isa}")
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "FUSEDOPT_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("isa") == isa
    differing = [key for key in own_digests if found[key] != own_digests[key]]
    assert not differing, f"{isa} against {fusedopt._C.isa()}"


def test_default_is_the_best_instruction_set() -> None:
    if "FUSEDOPT_CPU_ISA" in os.environ:
        pytest.skip("an instruction set is forced")
    usable = set(fusedopt._C.isa_built()) & set(fusedopt._C.isa_detected())
    best = next(i for i in ("avx512", "avx2", "baseline") if i in usable)
    assert fusedopt._C.isa() == best


@pytest.mark.parametrize("isa", ["nonsense", "avx512"])
def test_instruction_set_that_cannot_be_had(isa: str) -> None:
    """Says so in a sentence at import, rather than crash in a kernel."""
    if isa in fusedopt._C.isa_detected() and isa in fusedopt._C.isa_built():
        pytest.skip(f"this processor has {isa}")
    done = subprocess.run(
        [sys.executable, "-c", "import fusedopt; print('isa', fusedopt._C.isa())"],
        env={**os.environ, "FUSEDOPT_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode >= 0, "killed by a signal"
    assert isa in done.stderr


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({"isa": fusedopt._C.isa(), **digests()}))
