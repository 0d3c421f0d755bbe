"""fusedopt without its extension: everything works, as torch.optim does, or says that it can't."""

import os
import re
import subprocess
import sys
from pathlib import Path

import fusedopt
from fusedopt import _without_kernels

HERE = Path(__file__).parent
ENV = {**os.environ, "FUSEDOPT_KERNELS": "0"}


def test_without_kernels() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", str(HERE / "without_kernels.py")],
        cwd=HERE.parent, env=ENV, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_bug_report_says_so() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "fusedopt"],
        cwd=HERE.parent, env=ENV, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "kernels:                   none: FUSEDOPT_KERNELS=0\n" in result.stdout, result.stderr


def test_the_stand_in_has_what_the_package_asks_the_extension_for() -> None:
    used = set()
    for path in (HERE.parent / "fusedopt").rglob("*.py"):
        used |= set(re.findall(r"(?<!torch\.)\b_C\.(\w+)\(", path.read_text()))
    assert used >= {"Plan", "zero_grad", "isa"}
    assert {name for name in used if not hasattr(_without_kernels, name)} == set()
    assert {name for name in used if not hasattr(fusedopt._C, name)} == set()
    assert _without_kernels.optimizers().keys() == fusedopt._C.optimizers().keys()
