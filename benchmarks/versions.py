"""What wheels do with each Python and torch: `python -m benchmarks.versions`, by `make versions`.

For each row the wheel for that Python in dist (`make wheel PYTHON=...`) is installed in a new
environment under build/versions, with the torch that PyPI has for it. There fusedopt is imported,
`explain` asked, part of the tests run, and a step timed. torch's wheels for most Pythons are CUDA
builds of some gigabytes, so rows come one after the other, and each environment is removed again;
what was fetched stays in build/versions/cache until all rows are there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks import results, tables
from benchmarks.results import Row

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "build" / "versions"
CACHE = PLACE / "cache"  # what CUDA builds need beside torch is the same for all Pythons
CASE = ("python", "torch")
# The rows: versions of Python, and of torch.
ROWS = ("3.11:2.13.0", "3.10:2.14.1", "3.12:2.14.1", "3.13:2.14.1", "3.12:2.12.0", "3.12:2.11.0")
# Three minutes of the suite, what depends on torch's and Python's insides first of all.
TESTS = ("clip", "dicts", "explain", "fallback", "hooks", "odd_tensors", "overrides", "reentry",
         "semantics", "state_numbers", "swa_utils", "swa_utils_objects", "swa_utils_torchs",
         "unchanged", "users_code", "users_tensors", "zero_grad")  # fmt: skip
EXPLAIN = """
import platform, warnings, torch
warnings.simplefilter("error", RuntimeWarning)
import fusedopt
param = torch.nn.Parameter(torch.ones(3))
row = fusedopt.explain(fusedopt.AdamW([param])).rows[0]
print(platform.python_version(), torch.__version__, row.kernel, row.reason, sep="\\n")
"""


class Failure(Exception):
    """A row has no result; the message says why."""


def find_python(version: str) -> str:
    """Returns the path of a Python, from PATH or pyenv.

    Raises:
        Failure: There is none.
    """
    found = shutil.which(f"python{version}", path=os.pathsep.join(_search_path()))
    if found is None:
        raise Failure(f"no Python {version} here")
    return found


def _search_path() -> list[str]:
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    own = sorted(str(path) for path in pyenv.glob("versions/*/bin"))
    shims = str(pyenv / "shims")  # these exist for versions that are not selected
    return [p for p in os.environ.get("PATH", "").split(os.pathsep) if p != shims] + own


def find_wheel(version: str) -> Path:
    """Returns the newest wheel for a Python.

    Raises:
        Failure: There is none.
    """
    tag = "cp" + version.replace(".", "")
    found = sorted((ROOT / "dist").glob(f"fusedopt-*-{tag}-*.whl"), key=os.path.getmtime)
    if not found:
        raise Failure(f"no wheel for Python {version} in dist: make wheel PYTHON=python{version}")
    return found[-1]


def call(command: Sequence[str | Path], **env: str) -> str:
    """Runs a command in build/versions, and returns its output.

    Raises:
        Failure: It fails; the message ends with its last line.
    """
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | env
    result = subprocess.run(command, cwd=PLACE, env=variables, capture_output=True, text=True)
    if result.returncode:
        lines = (result.stdout + result.stderr).strip().splitlines() or ["no output"]
        print("\n".join(lines[-20:]), file=sys.stderr)
        raise Failure(f"{Path(command[0]).name} {command[1]}: {lines[-1]}")
    return result.stdout


def run_tests(home: Path) -> Row:
    """Runs part of the tests against what is installed, and counts."""
    report = home / "tests.xml"
    files = [str(ROOT / "tests" / f"test_{name}.py") for name in TESTS]
    # The program pytest, which doesn't put the working directory before what is installed.
    subprocess.run(
        [home / "bin" / "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *files],
        cwd=PLACE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if not report.is_file():
        raise Failure("pytest ended without a result")
    return count(report.read_text())


def count(report: str) -> Row:
    """Counts the tests of a JUnit report, and names those that failed."""
    cases = list(ElementTree.fromstring(report).iter("testcase"))
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = [c for c in cases if c.find("skipped") is not None]
    return {
        "passed": len(cases) - len(failed) - len(skipped),
        "failed": len(failed),
        "skipped": len(skipped),
        "failures": [f"{c.get('classname', '')}::{c.get('name')}" for c in failed],
    }


def time_step(home: Path) -> Row:
    """Times AdamW's step of 1000 tensors of 64, ours and torch's fused one, on one thread.

    Long enough for some hundred rounds, whose 10th percentile tells little of what else runs.
    """
    link = home / "path" / "benchmarks"
    link.parent.mkdir()
    link.symlink_to(ROOT / "benchmarks")
    made = home / "step.json"
    command = [home / "bin" / "python", "-m", "benchmarks.step", "--workload", "1000x64"]
    command += ["--implementation", "fusedopt", "fused", "--threads", "1", "--no-memory"]
    command += ["--seconds", "8"]
    call([*command, "--json", made], PYTHONPATH=str(link.parent))
    rows = json.loads(made.read_text())["rows"]
    return {row["implementation"]: row["seconds"] for row in rows if "seconds" in row}


def measure(python: str, torch: str, timed: bool, keep: bool) -> Row:
    """Makes one row; what can't be had is its `status`."""
    row: Row = {"python": python, "torch": torch, "status": ""}
    home = PLACE / f"python{python}-torch{torch}"
    shutil.rmtree(home, ignore_errors=True)
    PLACE.mkdir(parents=True, exist_ok=True)
    try:
        interpreter, wheel = find_python(python), find_wheel(python)
        row["wheel"] = wheel.name
        call([interpreter, "-m", "venv", str(home)])
        pip = [home / "bin" / "python", "-m", "pip", "install", "--quiet"]
        pip += ["--cache-dir", str(CACHE)]
        call([*pip, f"torch=={torch}", f"fusedopt[test] @ {wheel.as_uri()}"])
        answers = call([home / "bin" / "python", "-c", EXPLAIN]).splitlines()[-4:]
        row["python_found"], row["torch_found"], row["kernel"], row["reason"] = answers
        row |= run_tests(home)
        if timed:
            row["seconds"] = time_step(home)
    except Failure as failure:
        row["status"] = str(failure)
    finally:
        if not keep:
            shutil.rmtree(home, ignore_errors=True)
    return row


def table_rows(rows: Iterable[Row]) -> list[list[str]]:
    """The table of docs/versions.md."""
    head = ["Python", "torch", "kernels", "passed", "failed", "skipped",
            "1000 × 64, fusedopt", "torch, fused"]  # fmt: skip
    return [head, *map(_line, rows)]


def _line(row: Row) -> list[str]:
    names = [row.get("python_found", row["python"]), row.get("torch_found", row["torch"])]
    if row["status"]:
        return [*names, row["status"], *[""] * 5]
    kernels = "yes" if row["kernel"] == "adamw" else row["reason"]
    counts = [str(row[key]) for key in ("passed", "failed", "skipped")]
    seconds = row.get("seconds", {})
    times = [
        tables.seconds_text(seconds[name]["p10"]) if name in seconds else "not measured"
        for name in ("fusedopt", "fused")
    ]
    return [*names, kernels, *counts, *times]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; the status is 1 if a row failed."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser("python -m benchmarks.versions", description=__doc__)
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="PYTHON:TORCH")
    parser.add_argument("--no-times", action="store_true", help="don't time the step")
    parser.add_argument("--keep", action="store_true", help="leave the environments there")
    results.add_json(parser)
    options = parser.parse_args(arguments)
    if not all(row.count(":") == 1 for row in options.rows):
        parser.error("--rows takes versions such as 3.12:2.14.1")
    measured: list[dict[str, Any]] = []
    with results.recording(parser, "versions", arguments, options.json, CASE) as record:
        for python, torch in (row.split(":") for row in options.rows):
            print(f"Python {python}, torch {torch}", flush=True)
            measured.append(measure(python, torch, not options.no_times, options.keep))
            record.add(measured[-1:])
        if not options.keep:
            shutil.rmtree(CACHE, ignore_errors=True)
        print(tables.align(table_rows(measured)))
    sys.exit(any(row["status"] or row["failed"] or row["kernel"] != "adamw" for row in measured))


if __name__ == "__main__":
    main()
