"""What the build promises: who includes what, how it fails, and that the hot loops vectorise."""

import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusedopt import _C

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
COMMANDS = ROOT / "build" / "release" / "compile_commands.json"
OPTIMIZERS = r"\b(" + "|".join(_C.optimizers()) + r")\b"
TORCH = r"^(torch|ATen|c10|caffe2|pybind11)/"
CUDA = r"^(cuda[^/]*\.h|cuda/std|cub/|thrust/|cooperative_groups|nv)"


def includes(folder: str) -> Iterator[tuple[Path, str]]:
    """Yields every (file, included name) of a folder of csrc."""
    for path in sorted(p for p in (CSRC / folder).rglob("*") if p.is_file() and p.suffix != ".md"):
        for name in re.findall(r'^\s*#\s*include\s*["<](.+?)[">]', path.read_text(), re.MULTILINE):
            yield path.relative_to(CSRC), name


def test_rules_include_only_the_host_device_header() -> None:
    allowed = {"engine/host_device.h"} | {f"rules/{p.name}" for p in (CSRC / "rules").iterdir()}
    assert [(str(p), name) for p, name in includes("rules") if name not in allowed] == []


@pytest.mark.parametrize(("folder", "headers"), [("cuda", CUDA), ("torch", TORCH)])
def test_only_its_own_folder_includes_foreign_headers(folder: str, headers: str) -> None:
    wrong = [
        (str(path), name)
        for path, name in includes(".")
        if re.match(headers, name)
        and path.parts[0] != folder
        and path != Path("engine/host_device.h")
    ]
    assert wrong == []


def test_only_cuda_files_include_cuda_headers() -> None:
    """What torch/ and the tests include of cuda/ is plain C++."""
    wrong = [
        str(path)
        for path, name in includes("cuda")
        if re.match(CUDA, name) and not name.startswith("cuda/") and path.suffix != ".cu"
    ]
    assert wrong == []


def test_neither_the_engine_nor_a_sweep_names_an_optimizer() -> None:
    """Nor the plan: in torch/ only the table of them does."""
    files = [
        *(CSRC / "engine").iterdir(),
        *CSRC.glob("cpu/*.inl"),
        *(CSRC / "cpu" / name for name in ("sweep.h", "run.cpp", "chunks.h")),
        *(p for p in CSRC.glob("torch/*") if p.stem != "optimizers"),
        *(CSRC / "cuda" / name for name in ("arguments.h", "pack.h", "pack.cpp", "launch.cu")),
        *CSRC.glob("cuda/*.cuh"),
    ]
    assert [p.name for p in files if re.search(OPTIMIZERS, p.read_text(), re.IGNORECASE)] == []


def run_setup(tmp_path: Path, **env: str) -> str:
    """Runs setup.py, which is expected to fail at once, and returns what it says."""
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path / "lib")]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=60
    )
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("fusedopt:")]
    assert len(lines) == 1 and "Traceback" not in result.stderr
    return lines[0]


def test_the_build_names_a_missing_compiler(tmp_path: Path) -> None:
    assert "/nonexistent" in run_setup(tmp_path, CXX="/nonexistent")


def test_the_build_names_an_old_torch(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.10.1+cpu'\n")
    assert "2.11 or newer and found 2.10.1" in run_setup(tmp_path, PYTHONPATH=str(tmp_path))


def test_the_build_says_how_to_let_it_see_torch(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
    )
    assert "--no-build-isolation" in run_setup(tmp_path, PYTHONPATH=str(tmp_path))


def test_the_build_refuses_a_free_threaded_python(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sysconfig as s\nget = s.get_config_var\n"
        "s.get_config_var = lambda name: 1 if name == 'Py_GIL_DISABLED' else get(name)\n"
    )
    assert "free-threaded Python isn't supported" in run_setup(tmp_path, PYTHONPATH=str(tmp_path))


@pytest.mark.parametrize(
    ("version", "old"),
    [("2.10.1", True), ("1.13", True), ("", True), ("2.11.0a0+git1", False), ("3.0", False)],
)
def test_old_versions_of_torch_are_known(version: str, old: bool) -> None:
    check = importlib.import_module("fusedopt._check")
    assert check.too_old(version) is old


def import_error(monkeypatch: pytest.MonkeyPatch, torch_version: str | None) -> str:
    """Returns what the check at import says about a torch of that version."""
    torch = types.SimpleNamespace(__version__=torch_version) if torch_version else None
    monkeypatch.setitem(sys.modules, "torch", torch)
    with pytest.raises(ImportError) as caught:
        importlib.import_module("fusedopt._check").check()
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and ". " not in message
    return message


def test_import_names_what_is_wrong_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "found none" in import_error(monkeypatch, None)
    assert "2.11 or newer and found 2.5.0" in import_error(monkeypatch, "2.5.0")
    assert "found torch 9.0.0+cpu: build it" in import_error(monkeypatch, "9.0.0+cpu")


def test_import_says_that_the_extension_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "isn't built" in import_error(monkeypatch, torch.__version__)


# The instruction sets: the registers that their hot loops must use, as objdump names them.
REGISTERS = {"baseline": "xmm", "avx2": "ymm", "avx512": "zmm"}


def kernel_objects() -> dict[str, Path]:
    """Returns the object file of each optimizer's CPU kernels in the release build."""
    if not COMMANDS.is_file():
        pytest.skip("no C++ build in build/release (make cpp-test makes one)")
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed")
    objects = {}
    for entry in json.loads(COMMANDS.read_text()):
        if Path(entry["file"]).parent == CSRC / "cpu":
            output = re.search(r" -o (\S+)", entry["command"])[1]
            objects[Path(entry["file"]).stem] = COMMANDS.parent / output
    if not all(path.is_file() for path in objects.values()):
        pytest.skip("the C++ build in build/release is not complete")
    return objects


def functions(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Disassembles an x86-64 object file: (mnemonic, operands) of each function."""
    command = ["objdump", "-d", "-C", "-w", "--no-show-raw-insn", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "elf64-x86-64" not in text:
        pytest.skip("reads x86-64 code only")
    found: dict[str, list[tuple[str, str]]] = {}
    for line in text.splitlines():
        if title := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            code = found.setdefault(title[1], [])
        elif instruction := re.match(r"\s+[0-9a-f]+:\t(\S+)\s*(.*)", line):
            code.append((instruction[1], instruction[2]))
    return found


def isa_of(function: str) -> str | None:
    """Returns the instruction set whose namespace a function's name mentions."""
    match = re.search(r"\bcpu::(baseline|avx2|avx512)::", function)
    return match[1] if match else None


def test_the_flags_keep_the_bits_and_the_portability() -> None:
    kernel_objects()
    for entry in json.loads(COMMANDS.read_text()):
        flags = entry["command"].split()
        assert {"-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"} <= set(flags)
        assert not re.search(r"-march|-mavx|-mtune|-Ofast|-ffast-math|-flto", entry["command"])


@pytest.mark.parametrize("isa", REGISTERS)
def test_every_hot_loop_uses_the_registers_of_its_instruction_set(isa: str) -> None:
    for name, path in kernel_objects().items():
        code = functions(path)
        if not any("::sweep<" in function for function in code):
            continue  # run.cpp, isa.cpp: no kernels
        used, packed = {}, {}
        for function in (f for f in code if isa_of(f) == isa):
            used[function] = {m.removeprefix("v") for m, _ in code[function]}
            packed[function] = {
                m.removeprefix("v") for m, operands in code[function] if REGISTERS[isa] in operands
            }
            # The last few elements of a loop are done one by one, and only those may be.
            for operation, kind in itertools.product(["mul", "sqrt", "div"], "sd"):
                if f"{operation}s{kind}" in used[function]:
                    assert f"{operation}p{kind}" in packed[function], (name, function, operation)
        assert {"mulps", "mulpd"} <= set().union(*packed.values()), (name, isa)
        # bfloat16 and float16 are widened by shifts or unpacking, and rounded by integer additions.
        # Any packed instruction will do: clang 14 uses half a register here.
        for dtype in (2, 3):
            tiles = set().union(*(ops for f, ops in used.items() if f"Dtype){dtype}" in f))
            assert "paddd" in tiles, (name, isa, dtype)
            assert tiles & {"pslld", "punpcklwd", "pmovzxwd"}, (name, isa, dtype)


def test_loops_over_tensors_ask_for_the_memory_of_those_ahead() -> None:
    """g++ 12 drops calls of a function that only prefetches, unless that function forbids it."""
    for name, path in kernel_objects().items():
        code = functions(path)
        asking = {f for f in code if any(m.startswith("prefetch") for m, _ in code[f])}
        loops = {isa_of(f) for f in code if "::walk(" in f}
        assert loops <= {isa_of(f) for f in asking if re.search(r"::(walk|prefetch)\(", f)}, name
        assert asking or name != "norm"


def test_blocks_of_16_bit_floats_are_not_stepped_one_by_one() -> None:
    """They have no remainder: the tiles' loop, which has one, is a function of its own."""
    for name, path in kernel_objects().items():
        for function, instructions in functions(path).items():
            if isa_of(function) == "avx2" and re.search(
                r"::(sweep|blocks)<.*Dtype\)[23]", function
            ):
                assert "mulss" not in {m.removeprefix("v") for m, _ in instructions}, (
                    name,
                    function,
                )


def test_the_baseline_has_no_newer_instruction() -> None:
    for path in kernel_objects().values():
        for function, instructions in functions(path).items():
            # The stream kernel's variants are the compiler's own, such as [clone .avx2].
            if isa_of(function) in (None, "baseline") and "[clone .a" not in function:
                newer = [m for m, o in instructions if m.startswith("v") or re.search("%[yz]mm", o)]
                assert newer == [], function


def test_steps_are_shared_among_threads() -> None:
    """at::parallel_for is a loop on one thread unless its caller is compiled with OpenMP."""
    from fusedopt import _C

    symbols = Path(_C.__file__).read_bytes()
    assert any(name in symbols for name in (b"GOMP_parallel", b"__kmpc_fork_call"))
