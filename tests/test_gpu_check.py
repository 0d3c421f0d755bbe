"""`make gpu-check` without a GPU: what it says there, its stages, and the run under sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu_check
import gpu_run
import pytest
import torch
from cases import CLASS_CASES, DTYPES, NAMES, takes

import fusedopt

ROOT = Path(__file__).resolve().parents[1]
GPU = gpu_check.Gpu("NVIDIA H100 80GB HBM3", (9, 0), 80 << 30, "2.11.0+cu130", "13.0")


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def make(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs make where nvidia-smi finds no GPU."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    script(tmp_path / "bin" / "nvidia-smi", "exit 9")
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    env = {key: value for key, value in env.items() if not key.startswith("MAKE")}
    command = ["make", "--no-print-directory", "gpu-check", f"VENV={tmp_path / 'venv'}"]
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )


def test_without_a_gpu_make_says_so_and_does_nothing(tmp_path: Path) -> None:
    sees_none = script(tmp_path / "python", "exit 1")
    done = make(tmp_path, f"PYTHON={sees_none}")
    assert done.returncode == 2 and done.stdout == ""
    assert "gpu-check: no GPU: neither torch nor nvidia-smi finds one" in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("which", ["PYTHON", "VENV"])
def test_make_takes_the_python_whose_torch_sees_the_gpu(which: str, tmp_path: Path) -> None:
    sees = f'[ "$1" = -c ] && exit 0; echo {which} "$@"'
    python = script(tmp_path / "python", sees if which == "PYTHON" else "exit 1")
    if which == "VENV":
        script(tmp_path / "venv" / "bin" / "python", sees)
    done = make(tmp_path, f"PYTHON={python}", "ARGS=--stage build")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{which} tests/gpu_check.py --stage build\n"


def test_make_only_prints_where_it_is_asked_to(tmp_path: Path) -> None:
    python = script(tmp_path / "python", f"touch {tmp_path / 'ran'}")
    assert make(tmp_path, "-n", f"PYTHON={python}").returncode == 0
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("cuda", "message"), [(None, "built without CUDA"), ("13.0", "finds none")]
)
def test_the_script_names_what_torch_lacks(
    cuda: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == gpu_check.NO_GPU
    captured = capsys.readouterr()
    assert message in captured.err and "no GPU" in captured.err and captured.out == ""


class Recorded(gpu_check.Check):
    """Its commands are written down; those that contain a word of `fail` fail."""

    def __init__(self, *arguments: str, fail: tuple[str, ...] = ()) -> None:
        super().__init__(GPU, gpu_check.make_parser().parse_args(arguments))
        self.fail = fail
        self.ran: list[list[str]] = []
        self.given: list[Mapping[str, str]] = []

    def command(self, *command: str, env: Mapping[str, str] | None = None) -> None:
        self.ran.append([*command])
        self.given.append({**self.env, **(env or {})})
        if "--json" in command:
            path = gpu_check.ROOT / command[command.index("--json") + 1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        if any(word in part for word in self.fail for part in command):
            raise gpu_check.Failed(f"{self.fail} ended with 1")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source folder in which a build has left its facts, and PATHs without CUDA's tools."""
    for name in ("fusedopt", "tests", "benchmarks/results", "build/gpu"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "fusedopt" / "_build_info.py").write_text('CUDA = "13.0, sm_90"\n')
    (tmp_path / "build" / "built-x").touch()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_check, "RESULTS", tmp_path / "benchmarks" / "results")
    monkeypatch.setattr(gpu_check, "is_missing", lambda requirement: False)
    monkeypatch.setattr(gpu_check, "find_program", lambda name: f"/cuda/bin/{name}")
    return tmp_path


def run_all(check: gpu_check.Check) -> dict[str, str]:
    found = gpu_check.run_stages(check, list(gpu_check.STAGES))
    assert list(found) == list(gpu_check.STAGES)
    return {name: result for name, (result, *_) in found.items()}


def test_all_stages_run_in_order(root: Path) -> None:
    check = Recorded()
    assert set(run_all(check).values()) == {"ok"}
    assert (root / "benchmarks" / "results" / "nvidia-h100-80gb-hbm3.json").exists()
    lines = [" ".join(command) for command in check.ran]
    wanted = ["setup.py", "cmake -S", "ctest", "pytest", "--ignore-glob=*test_cuda*",
              "--tool memcheck", "--tool racecheck", "--tool initcheck", "gpt2 resnet50 1000x64",
              "float16", "benchmarks.report"]  # fmt: skip
    at = [next(i for i, line in enumerate(lines) if word in line) for word in wanted]
    assert at == sorted(at)
    assert not any("pip" in command for command in check.ran)
    assert all(env["FUSEDOPT_CUDA_KERNELS"] == "1" for env in check.given)
    assert all(env["FUSEDOPT_CUDA_ARCHITECTURES"] == "90" for env in check.given)
    for line, env in zip(lines, check.given, strict=True):
        assert ("compute-sanitizer" in line) == ("PYTORCH_NO_CUDA_MEMORY_CACHING" in env)
        assert ("--ignore-glob" in line) == (env.get("CUDA_VISIBLE_DEVICES") == "")


def test_what_does_not_need_a_failed_stage_runs_all_the_same(root: Path) -> None:
    found = run_all(Recorded(fail=("setup.py",)))
    assert found.pop("tools") == "ok" and found.pop("build") == "failed"
    assert set(found.values()) == {"not run"}
    found = run_all(Recorded(fail=("pytest", "racecheck")))
    assert {name for name, result in found.items() if result != "ok"} == {
        "cuda-tests", "tests", "racecheck",
    }  # fmt: skip


def test_an_incomplete_measurement_is_no_result(root: Path) -> None:
    check = Recorded("--stage", "benchmarks", "report", fail=("16m",))
    found = gpu_check.run_stages(check, check.options.stage)
    assert found["benchmarks"][0] == "failed" and "has what was measured" in found["benchmarks"][1]
    assert found["report"][:2] == ("not run", "needs benchmarks")
    assert (root / "build" / "gpu" / "nvidia-h100-80gb-hbm3.json").exists()
    assert not list((root / "benchmarks" / "results").iterdir())


def test_missing_tools_of_cuda_are_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "fusedopt" / "_build_info.py").write_text('CUDA = "none: no nvcc was found"\n')
    monkeypatch.setattr(gpu_check, "find_program", lambda name: None)
    found = gpu_check.run_stages(Recorded(), ["build", "kernels", "tests", "benchmarks"])
    assert found["kernels"][:2] == ("failed", "not built: no nvcc was found")
    assert found["tests"][0] == "ok" and found["benchmarks"][0] == "not run"
    found = gpu_check.run_stages(Recorded(), ["memcheck"])
    assert found["memcheck"][1].startswith("compute-sanitizer is missing")


def test_only_what_is_missing_is_installed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "is_missing", lambda requirement: "expect" in requirement)
    check = Recorded("--stage", "tools", fail=("pip",))  # as without a network
    found = gpu_check.run_stages(check, check.options.stage)
    (pip,) = check.ran
    assert pip[-1].startswith("expecttest") and not any("torch" in each for each in pip)
    result, note, _ = found["tools"]
    assert result == "ok" and "without expecttest>=0.2: tests/test_optim_db.py is skipped" in note
    monkeypatch.setattr(gpu_check, "is_missing", lambda requirement: "pybind11" in requirement)
    found = gpu_check.run_stages(check, check.options.stage)
    assert found["tools"][:2] == ("failed", "missing, and pip can't install: pybind11>=2.13")


@pytest.mark.parametrize(
    ("requirement", "version", "missing"),
    [
        ("pytest>=8", "8.0", False),
        ("pytest>=8.1", "8", True),
        ("setuptools>=77", "80.9.0.post1", False),
        ("numpy", "1", False),
        ("numpy", None, True),
    ],
)
def test_requirements_are_compared_with_what_is_there(
    requirement: str, version: str | None, missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str) -> str:
        if version is None:
            raise gpu_check.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(gpu_check, "metadata", SimpleNamespace(
        version=find, PackageNotFoundError=gpu_check.metadata.PackageNotFoundError
    ))  # fmt: skip
    assert gpu_check.is_missing(requirement) is missing


def test_requirements_are_pyprojects() -> None:
    found = gpu_check.requirements()
    assert {"ninja", "numpy"} <= set(found)
    assert any(each.startswith("pytest>=") for each in found)
    assert not any("ruff" in each for each in found)


def test_a_command_that_fails_is_named(tmp_path: Path) -> None:
    check = gpu_check.Check(GPU, gpu_check.make_parser().parse_args([]))
    with pytest.raises(gpu_check.Failed, match="ended with 3"):
        check.command(sys.executable, "-c", "raise SystemExit(3)")
    with pytest.raises(gpu_check.Failed, match="no-such-program: No such file"):
        check.command(str(tmp_path / "no-such-program"))


def test_one_failed_stage_is_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(check: Any) -> None:
        raise gpu_check.Failed("why")

    monkeypatch.setattr(gpu_check, "find_gpu", lambda: GPU)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setattr(gpu_check, "STAGES", {"one": (fail, ()), "two": (lambda check: None, ())})
    assert gpu_check.main([]) == 1
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split()[:2] for line in lines] == [["one", "failed"], ["two", "ok"]]
    monkeypatch.setattr(gpu_check, "STAGES", {"two": (lambda check: None, ())})
    assert gpu_check.main([]) == 0


def test_the_run_under_sanitizers_covers_everything() -> None:
    names = [work.name for work in gpu_run.work_list("cuda")]
    assert len(set(names)) == len(names)
    for dtype in DTYPES:
        label = str(dtype).removeprefix("torch.")
        assert {n.split("-")[0] for n in names if f"{label}, all layouts" in n} == set(NAMES)
    for case in CLASS_CASES:
        assert {f"{case.id}, large", f"{case.id}, side stream"} <= set(names)
        assert f"{case.id}, fused" in names or not takes(fusedopt, case.name, "fused")
        assert f"{case.id}, float16, GradScaler" in names
    assert any(name.endswith(", graph") for name in names)


@pytest.mark.parametrize("part", range(4))
def test_the_run_under_sanitizers_works(part: int) -> None:
    works = [work for work in gpu_run.work_list("cpu") if not work.name.endswith("many")]
    for work in works[part::16]:
        assert gpu_run.run(work, "cpu") == (True, ""), work.name


def test_a_wrong_result_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    play = gpu_run.work_list("cpu")[0].play
    seen = []

    def other(device: str) -> Any:
        optimizer = play(device)
        seen.append(device)
        if len(seen) == 1:
            optimizer.param_groups[0]["params"][0].data[0] += 1
        return optimizer

    ours, problem = gpu_run.run(gpu_run.Work("x", other), "cpu")
    assert ours and problem.startswith("not the CPU's bits: ")

    def broken(device: str) -> Any:
        raise RuntimeError("the sweep of AdamW")

    assert gpu_run.run(gpu_run.Work("x", broken), "cpu")[1] == "RuntimeError: the sweep of AdamW"
