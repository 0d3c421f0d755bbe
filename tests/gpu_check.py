"""Checks and measures everything on this machine's GPU: `make gpu-check`, or run it with a Python.

It uses that Python's torch, which must have CUDA, and installs only what is missing to build and
test. A stage that fails doesn't keep those from running that don't need it.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LIMIT = 1800  # seconds for one command
SIX = ["sgd-momentum", "adagrad", "rmsprop", "adadelta", "adam", "adamw"]
# What of the test extra the suite can do without; it skips, or takes longer.
SPARE = {"expecttest": "tests/test_optim_db.py is skipped", "pytest-xdist": "no tests in parallel"}
NO_GPU = 2


class Failed(Exception):
    """A stage failed; the message says why."""


@dataclass(frozen=True)
class Gpu:
    """What torch says of the GPU: memory in bytes, and the versions of torch and its CUDA."""

    name: str
    capability: tuple[int, int]
    memory: int
    torch: str
    cuda: str


def find_gpu() -> Gpu:
    """Asks torch.

    Raises:
        Failed: There is no torch, or it finds no GPU.
    """
    try:
        import torch
    except Exception as error:  # a broken torch fails in its own ways
        raise Failed(f"{sys.executable} can't import torch: {error}") from error
    if torch.version.cuda is None:
        raise Failed(f"no GPU: {sys.executable} has torch {torch.__version__}, built without CUDA")
    if not torch.cuda.is_available():
        raise Failed(f"no GPU: torch {torch.__version__} finds none")
    gpu = torch.cuda.get_device_properties(0)
    capability = (gpu.major, gpu.minor)
    return Gpu(gpu.name, capability, gpu.total_memory, torch.__version__, torch.version.cuda)


def requirements() -> list[str]:
    """What pyproject.toml lists as needed to build and to test."""
    text = (ROOT / "pyproject.toml").read_text()
    lists = [re.search(rf"^{key} = \[(.*?)\]", text, re.M | re.S) for key in ("requires", "test")]
    return [item for each in lists if each for item in re.findall(r'"([^"]+)"', each[1])]


def is_missing(requirement: str) -> bool:
    """Whether a requirement such as `cmake>=3.22` is neither a package here nor a program."""
    name, _, least = requirement.partition(">=")
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return name not in ("cmake", "ninja") or shutil.which(name) is None

    def numbers(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text)[:3]]

    return numbers(version) < numbers(least)


def find_program(name: str) -> str | None:
    """Looks on the PATH and where CUDA's toolkit usually is."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [f"{home}/{folder}" for home in homes if home for folder in ("bin", name)]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))


class Check:
    """The stages, for one GPU."""

    def __init__(self, gpu: Gpu, options: argparse.Namespace) -> None:
        self.gpu, self.options = gpu, options
        self.note = ""  # of the stage under way, for the summary
        self.env = {
            **os.environ,
            "FUSEDOPT_CUDA_KERNELS": "1",
            "FUSEDOPT_CUDA_ARCHITECTURES": "{}{}".format(*gpu.capability),
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.getenv("PYTHONPATH")])]),
            "PYTHONUNBUFFERED": "1",
        }

    def command(self, *command: str, env: Mapping[str, str] | None = None) -> None:
        """Runs a command.

        Raises:
            Failed: It failed, or took longer than `LIMIT`.
        """
        print(f"$ {shlex.join(command)}", flush=True)
        name = Path(command[0]).name
        try:
            done = subprocess.run(command, cwd=ROOT, env={**self.env, **(env or {})}, timeout=LIMIT)
        except OSError as error:
            raise Failed(f"{name}: {error.strerror}") from error
        except subprocess.TimeoutExpired:
            raise Failed(f"{name} was stopped after {LIMIT} s") from None
        if done.returncode:
            raise Failed(f"{name} ended with {done.returncode}")

    def python(self, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        """Runs this Python."""
        self.command(sys.executable, *arguments, env=env)

    def tools(self) -> None:
        """Installs what is missing, and nothing else."""
        missing = list(filter(is_missing, requirements()))
        if missing:
            pip = ["-m", "pip", "install", "--disable-pip-version-check", "--retries", "1"]
            try:
                self.python(*pip, *missing)
            except Failed as error:
                print(f"pip: {error}", flush=True)
            missing = list(filter(is_missing, requirements()))
        spare = {item: why for item in missing for name, why in SPARE.items() if name in item}
        self.note = "; ".join(f"without {item}: {why}" for item, why in spare.items())
        needed = [item for item in missing if item not in spare]
        if needed:
            raise Failed(f"missing, and pip can't install: {', '.join(needed)}")

    def build(self) -> None:
        """Builds the extension in place, for this GPU only."""
        for stamp in (ROOT / "build").glob("built-*"):
            stamp.unlink()  # what make built is replaced
        self.python("setup.py", "--quiet", "build_ext", "--inplace")

    def kernels(self) -> None:
        """Looks whether the build has CUDA kernels."""
        text = (ROOT / "fusedopt" / "_build_info.py").read_text()
        found = re.search(r'^CUDA = "(.*)"$', text, re.M)
        self.note = found[1] if found else "unknown"
        if self.note.startswith("none"):
            raise Failed(f"not built: {self.note.removeprefix('none: ')}")

    def cpp_tests(self) -> None:
        """The unit tests of the C++ core."""
        folder = "build/release"
        self.command("cmake", "-S", ".", "-B", folder, "-DFUSEDOPT_TESTS=ON")
        self.command("cmake", "--build", folder)
        self.command("ctest", "--test-dir", folder, "--output-on-failure", "--no-tests=error")

    def cuda_tests(self) -> None:
        """The tests that are about CUDA, in one process."""
        files = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests").glob("test_cuda*.py"))
        self._pytest(*files)

    def tests(self) -> None:
        """The other tests, in parallel; they are about the host, and see no GPU.

        Several processes of a group would have to share it, and the training script takes it.
        """
        workers = min(os.cpu_count() or 1, 16)
        parallel = [] if is_missing("pytest-xdist") else ["-n", str(workers)]
        host = {"CUDA_VISIBLE_DEVICES": ""}
        self._pytest(*parallel, "--ignore-glob=*test_cuda*", "tests", env=host)

    def _pytest(self, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        more = shlex.split(self.options.pytest)
        settings = {"OMP_NUM_THREADS": "1", **(env or {})}
        self.python("-m", "pytest", "-rs", *arguments, *more, env=settings)

    def sanitize(self, tool: str) -> None:
        """Runs tests/gpu_run.py under a tool of compute-sanitizer.

        Without torch's pool each tensor is an allocation of its own, with ends that can be passed.
        """
        program = find_program("compute-sanitizer")
        if program is None:
            raise Failed("compute-sanitizer is missing: it comes with CUDA's toolkit")
        arguments = ["--tool", tool, "--target-processes", "application-only"]
        arguments += ["--error-exitcode", "86"]
        if tool == "memcheck":  # what fails in our launches raises; torch tries calls that may fail
            arguments += ["--report-api-errors", "no"]
        if tool != "initcheck":  # which has to see who writes
            arguments += ["--kernel-name", "kernel_substring=fusedopt"]
        run = [sys.executable, "tests/gpu_run.py"]
        self.command(program, *arguments, *run, env={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})

    def benchmarks(self) -> None:
        """Measures into build/gpu, and takes the file over when it is complete."""
        name = re.sub(r"[^a-z0-9]+", "-", self.gpu.name.lower()).strip("-")
        path = ROOT / "build" / "gpu" / f"{name}.json"
        path.unlink(missing_ok=True)
        given = ["--runs", str(self.options.runs), "--seconds", str(self.options.seconds)]
        file = ["--json", str(path.relative_to(ROOT))]
        step = ["-m", "benchmarks.step", "--device", "cuda", *given, *file, "--optimizer", *SIX]
        failed = []
        for cases in (
            ["--workload", "gpt2", "resnet50", "1000x64", "--dtype", "float32"],
            ["--workload", "16m", "--dtype", "bfloat16", "float16"],
        ):
            try:
                self.python(*step, *cases)
            except Failed as error:
                failed.append(str(error))
        if failed:
            kept = f"; {path.relative_to(ROOT)} has what was measured" if path.exists() else ""
            raise Failed("; ".join(failed) + kept)
        path.replace(RESULTS / path.name)
        self.note = f"benchmarks/results/{path.name}"

    def report(self) -> None:
        """Makes the READMEs' tables."""
        self.python("-m", "benchmarks.report", "--no-charts")


# In order, each with the stages that it needs.
STAGES: dict[str, tuple[Callable[[Check], None], tuple[str, ...]]] = {
    "tools": (Check.tools, ()),
    "build": (Check.build, ("tools",)),
    "kernels": (Check.kernels, ("build",)),
    "cpp-tests": (Check.cpp_tests, ("build",)),
    "cuda-tests": (Check.cuda_tests, ("kernels",)),
    "tests": (Check.tests, ("build",)),
    "memcheck": (lambda check: check.sanitize("memcheck"), ("kernels",)),
    "racecheck": (lambda check: check.sanitize("racecheck"), ("kernels",)),
    "initcheck": (lambda check: check.sanitize("initcheck"), ("kernels",)),
    "benchmarks": (Check.benchmarks, ("kernels",)),
    "report": (Check.report, ("benchmarks",)),
}


def run_stages(check: Check, names: Sequence[str]) -> dict[str, tuple[str, str, float]]:
    """Runs the stages that were asked for, as far as those that they need didn't fail.

    Returns:
        Of each stage: "ok", "failed" or "not run"; a note; seconds.
    """
    found: dict[str, tuple[str, str, float]] = {}
    for name, (stage, needs) in STAGES.items():
        if name not in names:
            continue
        without = [each for each in needs if found.get(each, ("ok",))[0] != "ok"]
        if without:
            found[name] = ("not run", f"needs {', '.join(without)}", 0.0)
            continue
        print(f"\n== {name}", flush=True)
        check.note, start = "", time.monotonic()
        try:
            stage(check)
            result = "ok"
        except Failed as error:
            result, check.note = "failed", str(error)
        except KeyboardInterrupt:
            result, check.note = "failed", "stopped"
        found[name] = (result, check.note, time.monotonic() - start)
        if check.note == "stopped":
            break
    return found


def summary(found: Mapping[str, tuple[str, str, float]]) -> str:
    """One line per stage."""
    return "\n".join(
        f"{name:12} {result:8} {seconds:6.0f} s  {note}".rstrip()
        for name, (result, note, seconds) in found.items()
    )


def make_parser() -> argparse.ArgumentParser:
    """Describes the command line."""
    parser = argparse.ArgumentParser("gpu-check", allow_abbrev=False, description=__doc__)
    parser.add_argument(
        "--stage", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE",
        help=f"{', '.join(STAGES)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--runs", type=int, default=1, help="of each benchmark (default: 1)")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="to measure each case (default: 1)"
    )
    parser.add_argument("--pytest", default="", help="more arguments for pytest, in one string")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = make_parser().parse_args(arguments)
    try:
        gpu = find_gpu()
    except Failed as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return NO_GPU
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    capability = "{}.{}".format(*gpu.capability)
    print(f"{gpu.name}, compute capability {capability}; torch {gpu.torch}, CUDA {gpu.cuda}")
    found = run_stages(Check(gpu, options), options.stage)
    print(f"\n{gpu.name}\n{summary(found)}", flush=True)
    return int(any(result != "ok" for result, _, _ in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
