"""Instructions of a step, counted by valgrind's callgrind; unlike times they are repeatable."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.workloads import WORKLOADS

STEPS = 5
TOTAL = "total"
# By function of the extension, with all that it calls; Plan::step holds the others.
PARTS = {
    "step": r"fusedopt::Plan::step\(",
    "look": r"fusedopt::look\(",
    "build": r"fusedopt::build\(",
    "count": r"fusedopt::count\(",
    "kernel": r"fusedopt::cpu::run\(",
}


def why_not() -> str:
    """What is missing to count instructions, or nothing."""
    missing = [tool for tool in ("valgrind", "callgrind_annotate") if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return "" if _compiler() else "no C compiler found"


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")


def count(implementation: str, optimizer: str, workload: str) -> dict[str, float]:
    """Counts the instructions of one step in a process of its own; needs a minute.

    Returns:
        Instructions per step: in total, and in each of `PARTS` that was entered.

    Raises:
        RuntimeError: If the compiler or valgrind fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        library, output = Path(folder) / "callgrind.so", Path(folder) / "callgrind.out"
        source = Path(__file__).with_name("callgrind.c")
        _run([str(_compiler()), "-shared", "-fPIC", "-O1", str(source), "-o", str(library)])
        _run([
            "valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={output}",
            sys.executable, "-m", "benchmarks.instructions",
            str(library), implementation, optimizer, workload,
        ])  # fmt: skip
        text = _run(["callgrind_annotate", "--inclusive=yes", "--threshold=100", str(output)])
    return {name: events / STEPS for name, events in parse(text).items()}


def _run(command: list[str]) -> str:
    env = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    if result.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {result.stderr[-2000:]}")
    return result.stdout


def parse(annotated: str) -> dict[str, int]:
    """Reads the parts out of callgrind_annotate's inclusive list."""
    found: dict[str, int] = {}
    for line in annotated.splitlines():
        match = re.match(r"\s*([\d,]+) \([\d. ]+%\)\s+(.*)", line)
        if match is None:
            continue
        events, function = int(match[1].replace(",", "")), match[2]
        if function.startswith("PROGRAM TOTALS"):
            found[TOTAL] = events
        for part, pattern in PARTS.items():
            if part not in found and re.search(pattern, function):
                found[part] = events
    return found


def _child(library: str, implementation: str, optimizer: str, workload: str) -> None:
    """Runs under valgrind: steps, first uncounted, then counted."""
    torch.set_num_threads(1)
    callgrind = ctypes.CDLL(library)
    params = WORKLOADS[workload].parameters(torch.float32, "cpu")
    step = IMPLEMENTATIONS[implementation].make(OPTIMIZERS[optimizer], params).step
    for _ in range(3):
        step()
    callgrind.start()
    for _ in range(STEPS):
        step()
    callgrind.stop()


if __name__ == "__main__":
    _child(*sys.argv[1:])
