"""On a GPU: the same bits as on the CPU, and what torch's own step has to take there."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from cases import CASES, DTYPES, Case, over
from helpers import SHAPES, assert_identical, contents, kernels, random
from torch.nn import Parameter

from fusedopt import _C

LARGE = (100_003,)


def make_params(dtype: torch.dtype, device: str) -> list[Parameter]:
    shapes = [*SHAPES, LARGE, (0,), (8, 3, 5, 5)]
    made = [random(shape, i, dtype).to(device) for i, shape in enumerate(shapes)]
    made[-1] = made[-1].contiguous(memory_format=torch.channels_last)
    return [Parameter(value) for value in made]


def on_cpu(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: on_cpu(each) for key, each in value.items()}
    return value.cpu() if torch.is_tensor(value) else value


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if not _C.cuda_built():
        pytest.skip("this build has no CUDA kernels")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    if os.environ.get("FUSEDOPT_CUDA_KERNELS") != "1":
        pytest.skip("needs FUSEDOPT_CUDA_KERNELS=1 from the start of the process")


@pytest.mark.usefixtures("gpu")
@over(DTYPES, "dtype")
@over(CASES, "case")
def test_same_bits_as_on_the_cpu(case: Case, dtype: torch.dtype) -> None:
    found = []
    for device in ("cpu", "cuda"):
        params = make_params(dtype, device)
        optimizer = case.make(params)
        for t in range(4):
            for i, p in enumerate(params[t % 2 :]):
                p.grad = random(p.shape, 100 * t + i, dtype).to(device)
            optimizer.step()
        assert kernels(optimizer) == {case.name.lower()}
        found.append([on_cpu(value) for value in contents(optimizer)])
    assert_identical(found[1], found[0], "GPU")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("option", ["capturable", "fused"])
def test_step_counts_on_the_device_are_torchs(option: str) -> None:
    from fusedopt import AdamW

    param = Parameter(torch.ones(3, device="cuda"))
    optimizer = AdamW([param], **{option: True})
    assert kernels(optimizer) == {"torch"}
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert optimizer.state[param]["step"].is_cuda


def test_the_extension_loads_and_steps_without_a_gpu() -> None:
    """With the CUDA kernels asked for, too."""
    code = (
        "import torch, fusedopt\n"
        "p = torch.nn.Parameter(torch.ones(2)); p.grad = torch.ones(2)\n"
        "fusedopt.AdamW([p]).step()\n"
    )
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "FUSEDOPT_CUDA_KERNELS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
