"""Wheels: how the adapter for this torch is chosen, and what `make wheel` has made, if it has."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path

import pytest
import torch

import fusedopt
from fusedopt import _C

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fusedopt"
MINOR = ".".join(torch.__version__.split(".")[:2])
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
PYTHON = f"cp{sys.version_info[0]}{sys.version_info[1]}"
STEP = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import fusedopt
import torch
p = torch.nn.Parameter(torch.ones(3))
p.grad = torch.ones(3)
fusedopt.AdamW([p], lr=0.5, weight_decay=0).step()
print([round(x, 4) for x in p.tolist()], fusedopt.explain(fusedopt.AdamW([p])).rows[0].kernel)
print(*(w.message for w in caught if "fusedopt" in str(w.message)), sep="\\n")
"""


def run(folder: Path, program: str, **env: str) -> str:
    """Runs a program that finds fusedopt in a folder, and returns what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def as_if(version: str) -> str:
    """Returns a program's beginning, in which torch says that it is of another version."""
    names = "torch.__version__ = torch.version.__version__"
    return f"import torch, torch.version\n{names} = {version!r}\n"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with fusedopt as a wheel has it, the extension that there is as the one adapter."""
    if not Path(_C.__file__).name.startswith("_C."):
        pytest.skip("no extension that was built from source")
    ignored = shutil.ignore_patterns("_C.*", "__pycache__", "train")
    copied = shutil.copytree(Path(fusedopt.__file__).parent, tmp_path / "fusedopt", ignore=ignored)
    (copied / "_adapters").mkdir()
    shutil.copy(_C.__file__, copied / "_adapters" / f"_C_torch{MINOR.replace('.', '_')}{SUFFIX}")
    return tmp_path


def test_the_adapter_of_this_torch_becomes_the_extension(package: Path) -> None:
    (package / "fusedopt" / "_adapters" / "_C_torch2_9.cpython-39-other.so").touch()
    more = "print(fusedopt._C.__name__, fusedopt._C.__file__, *fusedopt._load.adapters())"
    lines = run(package, STEP + more).splitlines()
    assert lines[0] == "[0.5, 0.5, 0.5] adamw" and lines[1] == ""
    name, path, *adapters = lines[2].split()
    assert name == "fusedopt._C" and Path(path).parent == package / "fusedopt" / "_adapters"
    assert adapters == [MINOR]


def test_without_an_adapter_torch_steps_and_one_warning_says_so(package: Path) -> None:
    lines = run(package, as_if("2.99.0.dev20270101") + STEP).splitlines()
    assert lines[0] == "[0.5, 0.5, 0.5] torch"
    assert len(lines) == 2 and "no adapter for torch 2.99.0.dev20270101" in lines[1]
    assert f"(adapters: {MINOR})" in lines[1]


def test_another_torchs_adapter_refuses_to_load(package: Path) -> None:
    adapters = package / "fusedopt" / "_adapters"
    next(adapters.iterdir()).rename(adapters / f"_C_torch2_99{SUFFIX}")
    lines = run(package, as_if("2.99.0") + STEP).splitlines()
    assert lines[0] == "[0.5, 0.5, 0.5] torch"
    assert "this extension of fusedopt is for torch 2." in lines[1]
    assert "and found torch 2.99.0" in lines[1]


def test_a_broken_adapter_leaves_the_steps_to_torch(package: Path) -> None:
    next((package / "fusedopt" / "_adapters").iterdir()).write_bytes(b"")
    lines = run(package, STEP).splitlines()
    assert lines[0] == "[0.5, 0.5, 0.5] torch"
    assert f"the adapter for torch {MINOR} can't be loaded" in lines[1]


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The newest wheel in dist for this Python."""
    found = sorted((ROOT / "dist").glob(f"fusedopt-*-{PYTHON}-*.whl"), key=os.path.getmtime)
    if not found:
        pytest.skip(f"no wheel for {PYTHON} in dist (make wheel makes one)")
    return found[-1]


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def shared_objects(folder: Path) -> list[Path]:
    return sorted((folder / "fusedopt" / "_adapters").iterdir())


def test_a_wheel_holds_the_package_the_core_and_adapters(wheel: Path, unpacked: Path) -> None:
    cuda = "none" not in re.search(
        '^CUDA = "(.*)"', (unpacked / "fusedopt" / "_build_info.py").read_text(), re.MULTILINE
    )[1]  # fmt: skip
    assert wheel.stat().st_size <= (12 if cuda else 2.5) * 1e6
    sources = [path for kind in ("py", "pyi", "typed") for path in PACKAGE.rglob(f"*.{kind}")]
    expected = {str(path.relative_to(ROOT)) for path in sources}
    found = {str(p.relative_to(unpacked)) for p in unpacked.rglob("*") if p.is_file()}
    outside = {name for name in found if not name.startswith("fusedopt/")}
    assert all(re.match(r"fusedopt-[\d.]+\.dist-info/", name) for name in outside)
    names = {p.name for p in shared_objects(unpacked)}
    adapters = {name for name in names if re.fullmatch(r"_C_torch2_\d+" + re.escape(SUFFIX), name)}
    assert names == {"libfusedopt_core.so"} | adapters and adapters
    expected |= {f"fusedopt/_adapters/{name}" for name in names} | {"fusedopt/_build_info.py"}
    assert found - outside == expected


def output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_wheel_needs_glibc_2_28_torch_and_nothing_else(unpacked: Path) -> None:
    """manylinux_2_28: the symbols' versions of glibc 2.28 and g++ 8."""
    names = "libc.so.6 libm.so.6 libpthread.so.0 libdl.so.2 librt.so.1 libgcc_s.so.1 libstdc++.so.6"
    system = {*names.split(), "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
    torchs = {"libtorch_python.so", "libtorch.so", "libtorch_cpu.so", "libc10.so"}
    newest = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
    for path in shared_objects(unpacked):
        needed = set(re.findall(r"NEEDED.*\[(.+)\]", output("readelf", "-dW", str(path))))
        if path.name == "libfusedopt_core.so":
            assert needed <= system
        else:
            assert needed - system == {"libfusedopt_core.so", *torchs}
        for symbol, name, version in re.findall(
            r"(\S+)@(GLIBC|GLIBCXX|CXXABI|GCC)_([\d.]+)", output("nm", "-D", str(path))
        ):
            numbers = tuple(map(int, version.split(".")))
            assert numbers <= newest[name], (path.name, symbol, version)


def test_only_the_core_shows_what_adapters_call(unpacked: Path) -> None:
    """No name of ours or of cudart's is found by others; adapters show Python's entry alone."""
    for path in shared_objects(unpacked):
        lines = output("nm", "-DC", "--defined-only", str(path)).splitlines()
        shown = {line.split(" ", 2)[2] for line in lines if line.split()[1] in "TDBR"}
        if path.name == "libfusedopt_core.so":
            assert {n for n in shown if not re.search(r"fusedopt::(cpu|cuda)::", n)} == set()
        else:
            assert {n for n in shown if not n.startswith("PyInit")} == set()


def test_this_torch_has_all_that_its_adapter_asks_for(unpacked: Path) -> None:
    path = unpacked / "fusedopt" / "_adapters" / f"_C_torch{MINOR.replace('.', '_')}{SUFFIX}"
    if not path.is_file():
        pytest.skip(f"the wheel has no adapter for torch {MINOR}")
    asked = set(re.findall(r"^ +U (\w+)$", output("nm", "-D", str(path)), re.MULTILINE))
    libraries = [
        path.parent / "libfusedopt_core.so",
        *Path(torch.__file__).parent.glob("lib/*.so*"),
    ]
    libraries += Path(torch.__file__).parents[1].glob("torch.libs/*.so*")
    libraries += [Path(sys.executable).resolve()]
    libraries += Path(sysconfig.get_config_var("LIBDIR")).glob("libpython3*.so*")
    known = set()
    for library in libraries:
        shown = output("nm", "-D", "--defined-only", str(library))
        known |= set(re.findall(r" (\w+)(?:@.*)?$", shown, re.MULTILINE))
    assert any("TensorImpl" in name for name in asked)
    assert asked - known == set()


def test_other_torchs_adapters_refuse_this_one(unpacked: Path) -> None:
    """By a symbol that it lacks, or by the version; none crashes or is used."""
    program = """
import importlib.machinery, importlib.util, sys, torch
loader = importlib.machinery.ExtensionFileLoader("fusedopt._C", sys.argv[1])
spec = importlib.util.spec_from_loader("fusedopt._C", loader)
try:
    loader.exec_module(importlib.util.module_from_spec(spec))
except ImportError as error:
    print(error)
"""
    for path in unpacked.glob("fusedopt/_adapters/_C_torch*"):
        minor = ".".join(re.findall(r"\d+", path.name)[:2])
        command = [sys.executable, "-c", program, str(path)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
        sentence = (
            f"this extension of fusedopt is for torch {minor} and found torch {torch.__version__}"
        )
        expected = ("undefined symbol", sentence) if minor != MINOR else ("",)
        assert any(text in result.stdout for text in expected), result.stdout
        assert bool(result.stdout) == (minor != MINOR)


def test_a_user_installs_it_without_a_compiler(wheel: Path, tmp_path: Path) -> None:
    """What is installed works, and is gone after uninstalling."""
    home = tmp_path / "environment"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    site = next(home.glob("lib/python*/site-packages"))
    env = {"PATH": str(home / "bin"), "HOME": str(tmp_path)}

    def call(*arguments: str) -> str:
        result = subprocess.run(
            [python, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def files() -> set[Path]:
        return {path for path in home.rglob("*") if path.name != "__pycache__"}

    assert shutil.which("c++", path=env["PATH"]) is None
    call("-m", "pip", "--version")  # compiles pip
    before = files()
    began = time.monotonic()
    call("-m", "pip", "install", "--no-index", "--no-deps", "--quiet", str(wheel))
    print(f"installed in {time.monotonic() - began:.1f} s")
    path_file = site / "torch.pth"
    path_file.write_text(str(Path(torch.__file__).parents[1]) + "\n")
    lines = call("-c", STEP + f"print(fusedopt.__file__.startswith({str(site)!r}))").splitlines()
    assert lines == ["[0.5, 0.5, 0.5] adamw", "", "True"]
    assert f"torch {torch.__version__}" not in call("-m", "fusedopt")
    path_file.unlink()
    call("-m", "pip", "uninstall", "--yes", "--quiet", "fusedopt")
    left = {path for path in files() - before if site / "pip" not in path.parents}
    assert left == set()
