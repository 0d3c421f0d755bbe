"""What nvcc made of the CUDA kernels: registers, spills, wide accesses. Needs no GPU."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "release" / "cuda"
NO_RULES = ("launch", "norm", "self_test")
SOURCES = sorted(p for p in (ROOT / "csrc" / "cuda").glob("*.cu") if p.stem not in NO_RULES)
# In a mangled name: the kernel, the rule, float or double, and the rule's template options.
KERNEL = re.compile(r"(sweep_mixed|sweep|prepare)INS_\d+([A-Z][a-z]+)I([fd])((?:Lb[01]E)*)E")
# States of each rule; each of its template options that is set adds one.
STATES = {
    rule: int(states)
    for path in (ROOT / "csrc" / "rules").glob("*.h")
    for rule, states in re.findall(
        r"^struct (\w+) \{\n  static constexpr int kStates = (?:\w+ \? \d : )?(\d)",
        path.read_text(), re.MULTILINE
    )
}  # fmt: skip


def report(source: Path) -> str:
    """Returns what ptxas said of one source file in the release build."""
    path = BUILD / f"{source.stem}.o.txt"
    if not path.is_file():
        pytest.skip("no CUDA kernels in build/release (make cpp-test makes them, if nvcc is found)")
    return path.read_text()


def operands(rule: str, flags: str) -> int:
    """Returns how many tensors a rule reads: parameter, gradient, states."""
    return 2 + STATES[rule] + flags.count("Lb1")


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_no_kernel_spills_and_enough_blocks_fit(source: Path) -> None:
    found = re.findall(
        r"entry function '(\S+)' for '(\S+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        report(source),
        re.DOTALL,
    )
    assert {"sweep", "sweep_mixed", "prepare"} == {KERNEL.search(name)[1] for name, *_ in found}
    for name, architecture, stores, loads, registers in found:
        kernel = KERNEL.search(name)
        # kResidentBlocks in tuning.h: so many blocks of 256 threads share 65536 registers.
        limit = 128 if kernel[3] == "d" or architecture == "sm_120" else 64
        assert (int(stores), int(loads)) == (0, 0), (name, architecture)
        assert int(registers) <= limit, (name, architecture)


def test_the_norms_kernels_do_not_spill() -> None:
    text = report(ROOT / "csrc" / "cuda" / "norm.cu")
    kernels = re.findall(r"entry function '\S*?(lanes|blocks|columns|total)_kernelE", text)
    assert {"lanes", "blocks", "columns", "total"} == set(kernels)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text)
    assert len(spills) >= len(kernels) and set(spills) == {("0", "0")}
    assert max(map(int, re.findall(r"Used (\d+) registers", text))) <= 64


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_vectors_are_loaded_and_stored_16_bytes_at_a_time(source: Path, tmp_path: Path) -> None:
    report(source)
    command = (BUILD / "flags.txt").read_text().split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is gone")
    output = tmp_path / "kernels.ptx"
    warnings = ["-Werror", "all-warnings"]
    subprocess.run(
        [*command, *warnings, "-arch=compute_90", "-ptx", str(source), "-o", str(output)],
        check=True,
        timeout=300,
    )
    entries = re.split(r"\.visible \.entry |\.weak \.entry ", output.read_text())[1:]
    sweeps = 0
    for entry in entries:
        kernel = KERNEL.search(entry.split("(")[0])
        assert not re.search(r"fma\.rn\.f32|\.ftz|\.approx", entry), kernel[0]
        assert ".local" not in entry or kernel[1] == "prepare", kernel[0]
        if kernel[1] != "sweep":
            continue
        sweeps += 1
        count = operands(kernel[2], kernel[4])
        wide = r"global\.(v4\.[ubf]32|v2\.[ubf]64)"
        assert len(re.findall(rf"ld\.{wide}", entry)) >= count, kernel[0]
        assert len(re.findall(rf"st\.{wide}", entry)) >= count, kernel[0]
    assert sweeps > 0 and sweeps % 4 == 0


def test_the_extension_hides_its_cuda_runtime() -> None:
    modules = list((ROOT / "fusedopt").glob("_C.*.so"))
    if not modules or shutil.which("nm") is None:
        pytest.skip("no extension, or no nm")
    text = subprocess.run(
        ["nm", "-D", "--defined-only", str(modules[0])], capture_output=True, text=True, check=True
    ).stdout
    assert not re.search(r" (__)?cuda[A-Z]", text)


def test_a_wheel_knows_what_cudart_calls_of_a_newer_glibc() -> None:
    """Functions that glibc has moved since 2.28: a wheel's core must call them as they were."""
    caches = "".join(path.read_text() for path in (ROOT / "build").glob("*/CMakeCache.txt"))
    cudart = re.search("^FUSEDOPT_CUDART:FILEPATH=(/.+)", caches, re.MULTILINE)
    libc = re.search(r" (/\S+/libc\.so\.6)$", Path("/proc/self/maps").read_text(), re.MULTILINE)
    if not cudart or not libc or shutil.which("nm") is None:
        pytest.skip("no static cudart that a build has found, no glibc, or no nm")

    def names(*command: str) -> str:
        return subprocess.run(["nm", *command], capture_output=True, text=True, check=True).stdout

    asked = set(re.findall(r" U (\w+)$", names("-u", cudart[1]), re.MULTILINE))
    versions = re.findall(r" (\w+)@@GLIBC_2\.(\d+)", names("-D", libc[1]))
    moved = {name for name, minor in versions if int(minor) > 28}
    assert "cudaLaunchKernel" not in asked and "malloc" in asked
    listed = re.findall(r"\b\w+\b", (ROOT / "cmake" / "adapters.cmake").read_text())
    assert asked & moved <= set(listed)


def configure(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Configures a build without the extension."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    return subprocess.run(
        ["cmake", "-S", str(ROOT), "-B", str(tmp_path), "-DFUSEDOPT_EXTENSION=OFF", *options],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_cuda_can_be_turned_off(tmp_path: Path) -> None:
    result = configure(tmp_path, "-DFUSEDOPT_CUDA=0")
    assert result.returncode == 0
    assert "CUDA kernels: none: FUSEDOPT_CUDA=0" in result.stdout


def test_cuda_can_be_demanded(tmp_path: Path) -> None:
    result = configure(tmp_path, "-DFUSEDOPT_CUDA=1", "-DFUSEDOPT_NVCC=/nonexistent/nvcc")
    assert result.returncode != 0
    assert "FUSEDOPT_CUDA=1 asks for CUDA kernels, but" in " ".join(result.stderr.split())
