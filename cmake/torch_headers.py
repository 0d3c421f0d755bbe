"""Fetches the headers of torches, which a wheel's adapters are compiled against.

python cmake/torch_headers.py 2.13.0 2.14.1 --into build/headers

unpacks torch/include and torch/version.py of each into build/headers/VERSION, and prints these
folders as CMake's FUSEDOPT_ADAPTERS. They come from torch's wheels for macOS, by pip: 80 to 130 MB
each, where the default for Linux, a CUDA build, has many times as much. What is there already isn't
fetched again.

For torch 2.13.0 they were compared with those of the wheel for Linux. Of what csrc/torch includes
only ATen/Config.h differs, and there only in what nothing of ours asks for (MKL, oneDNN, BLAS, FFT,
KleidiAI). What would matter is checked for each torch, below. Those of 2.12.1 and 2.14.0 differ
from those of 2.12.0 and 2.14.1 in version numbers and in one operator that nothing of ours
includes: so one adapter is for all patches of a minor version.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# torch's macOS wheels of these versions are for these platforms and all later ones.
PLATFORMS = ("macosx_11_0_arm64", "macosx_14_0_arm64")


def fetch(version: str, into: Path) -> Path:
    """Unpacks the headers of a torch, and returns their folder.

    Args:
        version: Such as ``2.13.0``.
        into: The folder that gets a folder with the version as its name.

    Raises:
        RuntimeError: If pip can't fetch it, or its headers aren't as ours need them.
    """
    folder = into.resolve() / version
    if folder.is_dir():
        return folder
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into) as temporary:
        place = Path(temporary)
        wheel = _download(version, place)
        with zipfile.ZipFile(wheel) as archive:
            wanted = [n for n in archive.namelist() if n.startswith("torch/include/")]
            archive.extractall(place / "headers", [*wanted, "torch/version.py"])
        _check(place / "headers", version)
        shutil.move(place / "headers", folder)  # whole, or not at all
    return folder


def _download(version: str, place: Path) -> Path:
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", *platforms, "--python-version", "3.11"]
    result = subprocess.run(
        [*command, "--dest", str(place), f"torch=={version}"], capture_output=True, text=True
    )
    found = list(place.glob("torch-*.whl"))
    if result.returncode or len(found) != 1:
        raise RuntimeError(f"pip can't fetch the headers of torch {version}:\n{result.stderr}")
    return found[0]


def _check(folder: Path, version: str) -> None:
    """Makes sure of what may differ between systems and would change what we compile."""
    text = (folder / "torch" / "version.py").read_text()
    found = re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)
    if found is None or found[1].split("+")[0] != version:
        raise RuntimeError(f"the wheel of torch {version} is of torch {found and found[1]}")
    config = (folder / "torch" / "include" / "ATen" / "Config.h").read_text()
    # at::parallel_for must be OpenMP's, as it is in torch's builds for Linux.
    if "#define AT_PARALLEL_OPENMP 1\n" not in config:
        raise RuntimeError(f"torch {version} for macOS shares work among threads without OpenMP")


def main() -> None:
    """Fetches all that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("versions", nargs="+", metavar="VERSION")
    parser.add_argument("--into", type=Path, default=Path("build/headers"))
    arguments = parser.parse_args()
    try:
        folders = [fetch(version, arguments.into) for version in arguments.versions]
    except RuntimeError as error:
        raise SystemExit(f"torch_headers: {error}") from None
    print(";".join(map(str, folders)))


if __name__ == "__main__":
    main()
