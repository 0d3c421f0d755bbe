"""The sources' archive: it holds what a build, the tests and the benchmarks need."""

import shutil
import subprocess
import sys
import tarfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD = "from setuptools import build_meta; build_meta.build_sdist('dist')"
# What a build and tools leave in the folders that are packed.
MADE = ("_C.cpython-310-x86_64-linux-gnu.so", "_adapters/libfusedopt_core.so", "_build_info.py",
        "__pycache__/lion.cpython-310.pyc")  # fmt: skip


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """The files that git knows, but for those of its own and of CI."""
    command = ["git", "ls-files", "-z"]
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git repository, which knows what the sources are")
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = {name for name in printed.split("\0")[:-1] if (ROOT / name).is_file()}
    return {name for name in names if not name.startswith((".ci/", ".git"))}


@pytest.fixture(scope="module")
def archive(tracked: set[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the archive that is made where there was a build before."""
    project = tmp_path_factory.mktemp("sdist") / "project"
    for name in tracked:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    for name in MADE:
        (project / "fusedopt" / name).parent.mkdir(exist_ok=True)
        (project / "fusedopt" / name).write_bytes(b"")
    command = [sys.executable, "-c", BUILD]
    result = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    (path,) = (project / "dist").iterdir()
    with tarfile.open(path) as tar:
        members = [member for member in tar.getmembers() if member.isfile()]
        return {m.name.split("/", 1)[1]: tar.extractfile(m).read() for m in members}


def test_the_archive_holds_all_sources_and_nothing_that_was_built(
    tracked: set[str], archive: dict[str, bytes]
) -> None:
    assert tracked - set(archive) == set()
    others = {name for name in set(archive) - tracked if "egg-info/" not in name}
    assert others == {"PKG-INFO", "setup.cfg"}


def test_what_a_package_index_would_show(archive: dict[str, bytes]) -> None:
    metadata = message_from_bytes(archive["PKG-INFO"])
    assert metadata["Name"] == "fusedopt"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload(decode=True) == (ROOT / "README.md").read_bytes()
    assert "torch>=2.11" in metadata.get_all("Requires-Dist")
    # A licence is said once: an index refuses both this and a classifier.
    assert not any(c.startswith("License ::") for c in metadata.get_all("Classifier"))
