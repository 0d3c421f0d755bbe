"""Builds the extension module for setuptools by driving CMake, which knows how (CMakeLists.txt)."""

import functools
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# Folders of torches' headers (cmake/torch_headers.py): what is built then is `make wheel`'s.
ADAPTERS = os.environ.get("FUSEDOPT_ADAPTERS", "")
BUILD = ROOT / "build" / ("wheel" if ADAPTERS else "release")
CHECK = runpy.run_path(str(ROOT / "fusedopt" / "_check.py"))


def fail(sentence: str) -> None:
    """Ends the build with one sentence and no traceback."""
    raise SystemExit(f"fusedopt: {sentence}")


def find_tool(name: str) -> str:
    """Returns the path of a program that comes from PyPI, or stops the build."""
    scripts = sysconfig.get_path("scripts")
    path = shutil.which(name, path=os.pathsep.join([scripts, os.environ.get("PATH", "")]))
    if path is None:
        fail(f"{name} is missing: run 'pip install setuptools cmake ninja pybind11' and try again.")
    return path


@functools.cache
def find_cmake(cache: Path = BUILD / "CMakeCache.txt") -> str:
    """Returns CMake's path; for wheels that with which the first Python's was made, if it is there.

    It is part of the commands that compile the CUDA kernels: another would compile them anew.
    """
    if ADAPTERS and cache.is_file():
        found = re.search("^CMAKE_COMMAND:INTERNAL=(.*)", cache.read_text(), re.MULTILINE)
        if found and Path(found[1]).is_file():
            return found[1]
    return find_tool("cmake")


def cmake(*arguments: str) -> None:
    """Runs CMake, or stops the build if it fails."""
    if subprocess.run([find_cmake(), *arguments]).returncode:
        fail("the build failed, for the reason that CMake or the compiler gives above.")


def check_torch() -> None:
    """Stops the build unless the torch to build for can be found and is recent enough."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        fail(
            "the build found no torch: install torch first, and then run "
            "'pip install --no-build-isolation .', so that the build sees it."
        )
    version = runpy.run_path(str(Path(spec.origin).parent / "version.py"))["__version__"]
    if CHECK["too_old"](version):
        fail(CHECK["TOO_OLD"].format(version))


def check_python() -> None:
    """Stops the build for a Python without the global lock, which the extension counts on."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        fail("free-threaded Python isn't supported: take one that has the global lock.")


def check_compiler() -> str:
    """Returns the C++ compiler's command, or stops the build if there is none, or no Python.h."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    found = [name for name in names if shutil.which(shlex.split(name)[0])]
    if not found:
        fail(
            f"no C++ compiler was found (tried {', '.join(names)}): install g++ 11 or clang++ 14, "
            "or newer, or name one with CXX=..."
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        fail(f"{header} is missing: install Python's headers (Debian, Ubuntu: python3-dev).")
    return found[0]


def remove_others(package: Path) -> None:
    """Removes what an earlier build of the other kind has left where setuptools collects files."""
    shutil.rmtree(package / "_adapters", ignore_errors=True)
    for module in package.glob("_C.*.so"):
        module.unlink()


class CMakeBuild(build_ext):
    """Runs CMake and Ninja in build/release, and installs the result where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        """Builds the module, and copies it and _build_info.py into the package."""
        check_python()
        if not ADAPTERS:
            check_torch()
        find_cmake()  # while the cache is there
        ninja = find_tool("ninja")
        if importlib.util.find_spec("pybind11") is None:
            fail("pybind11 is missing: run 'pip install pybind11' and try again.")
        compiler = check_compiler()

        # CMake keeps the folder, compiler and Python that it saw first: for others it starts anew.
        made_for = f"{BUILD} {compiler} {sys.executable}"
        cache = BUILD / "CMakeCache.txt"
        if cache.is_file() and f"FUSEDOPT_MADE_FOR:STRING={made_for}\n" not in cache.read_text():
            if ADAPTERS:
                cache.unlink()  # the core is the same for every Python
            else:
                shutil.rmtree(BUILD)
        os.environ["CXX"] = compiler
        jobs = os.environ.get("MAX_JOBS")
        cmake(
            *("-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DFUSEDOPT_MADE_FOR:STRING={made_for}",
            # Always given, so that CMake's cache keeps none from an earlier build.
            f"-DFUSEDOPT_ADAPTERS={ADAPTERS}",
            f"-DFUSEDOPT_CUDA={os.environ.get('FUSEDOPT_CUDA', '')}",
            f"-DFUSEDOPT_CUDA_ARCHITECTURES={os.environ.get('FUSEDOPT_CUDA_ARCHITECTURES', '')}",
        )
        target = "all" if ADAPTERS else "_C"
        cmake("--build", str(BUILD), "--target", target, *(["--parallel", jobs] if jobs else []))
        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        remove_others(package)
        strip = ["--strip"] if ADAPTERS else []
        cmake("--install", str(BUILD), "--prefix", str(package.parent), *strip)

    def copy_extensions_to_source(self) -> None:
        """Puts both files into the source folder, for `pip install -e` and `--inplace`."""
        cmake("--install", str(BUILD), "--prefix", str(ROOT))


# Checked here because an older one already trips over pyproject.toml.
if int(metadata.version("setuptools").split(".")[0]) < 77:
    fail("setuptools is too old: run 'pip install -U setuptools' and try again.")
setup(
    ext_modules=[Extension("fusedopt._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    install_requires=[f"torch>={CHECK['MIN_TORCH']}"],
)
