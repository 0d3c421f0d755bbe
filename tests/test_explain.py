"""`fusedopt.explain` and `python -m fusedopt`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from cases import MAIN_CASES, NAMES, Case, over
from helpers import assert_unchanged, contents, make_params, set_grads
from torch.nn import Parameter

import fusedopt


@over(MAIN_CASES, "case")
def test_rows(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    """One row per device, dtype, kernel and reason; a notebook shows the table once."""
    params = [
        Parameter(torch.zeros(3, 4)),
        Parameter(torch.zeros(5)),
        Parameter(torch.zeros(7, dtype=torch.bfloat16)),
        Parameter(torch.zeros(2, dtype=torch.complex64)),
    ]
    explanation = fusedopt.explain(case.make(params))
    kernel, isa = case.name.lower(), fusedopt._C.isa()
    found = [(r.device, r.dtype, r.tensors, r.elements, r.kernel, r.isa) for r in explanation.rows]
    assert found[:2] == [
        ("cpu", "float32", 2, 17, kernel, isa),
        ("cpu", "bfloat16", 1, 7, kernel, isa),
    ]
    assert found[2][:5] == ("cpu", "complex64", 1, 2, "torch" if case.has_fallback else "none")
    assert not explanation.rows[0].reason
    assert "complex" in explanation.rows[2].reason
    table = repr(explanation)
    assert str(explanation) == table
    assert capsys.readouterr().out == ""
    for word in ("device", "float32", "17", kernel, isa, "complex"):
        assert word in table


@over(MAIN_CASES, "case")
def test_changes_nothing(case: Case) -> None:
    params = make_params()
    optimizer = case.make(params)
    set_grads(params, 0)
    for _ in range(2):
        before, states = contents(optimizer), len(optimizer.state)
        fusedopt.explain(optimizer)
        assert_unchanged(optimizer, before)
        assert len(optimizer.state) == states
        optimizer.step()


def reason(params: list[torch.Tensor], **kwargs: object) -> str:
    """Why torch's own step takes one of these parameters."""
    rows = fusedopt.explain(fusedopt.SGD(params, **kwargs)).rows
    (row,) = [r for r in rows if r.kernel == "torch"]
    assert row.reason
    return row.reason.lower()


@pytest.mark.filterwarnings("ignore:.*duplicate parameters")
def test_reasons() -> None:
    p = Parameter(torch.zeros(4))
    sparse = Parameter(torch.zeros(4))
    sparse.grad = torch.ones(4).to_sparse()
    assert "sparse" in reason([p, sparse])
    assert "complex" in reason([torch.zeros(2, dtype=torch.complex64)])
    assert "differentiable" in reason([p], differentiable=True)
    assert "fused=false" in reason([p], fused=False).replace(" ", "")
    assert "device" in reason([torch.zeros(2, device="meta")])
    assert reason([p, p])
    memory = torch.zeros(9)
    assert reason([Parameter(memory[:5]), Parameter(memory[3:])])


def test_optimizer_of_torchs() -> None:
    """For comparison: everything is torch's."""
    rows = fusedopt.explain(torch.optim.AdamW(make_params())).rows
    assert {r.kernel for r in rows} == {"torch"}


@pytest.mark.parametrize("name", NAMES)
def test_before_the_first_gradient(name: str) -> None:
    """The answer doesn't depend on whether there is a gradient yet."""
    rows = fusedopt.explain(getattr(fusedopt, name)(make_params())).rows
    assert [(r.tensors, r.kernel) for r in rows] == [(4, name.lower())]


def test_command_line() -> None:
    """`python -m fusedopt` prints what a bug report needs."""
    done = subprocess.run(
        [sys.executable, "-m", "fusedopt"],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    for word in (torch.__version__, sys.version.split()[0], "baseline", "CUDA"):
        assert word.lower() in done.stdout.lower()
