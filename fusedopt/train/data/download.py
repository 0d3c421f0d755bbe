"""Files that data sets are published as: where each belongs, and fetching it."""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from fusedopt.train.data.images import DataError

CHUNK = 1 << 20
TIMEOUT = 60  # seconds without an answer


@dataclass(frozen=True)
class Published:
    """A file on the web.

    Attributes:
        url: its last part is the file's name.
        md5: of the whole file, in hexadecimal digits. It shows damage, not forgery: the publishers
            give no better checksum.
    """

    url: str
    md5: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


def require(name: str, folder: Path, files: Sequence[Published], download: bool) -> None:
    """Makes sure that all files of a data set are in a folder, `NAME.gz` or unpacked.

    Args:
        name: of the data set, for messages.
        folder: is created where something is fetched.
        files: what has to be there.
        download: fetch what isn't, and check that what is there is what was published.

    Raises:
        DataError: something is missing and not to be fetched, can't be fetched, or is another file.
    """
    if not download:
        missing = [file for file in files if find(folder, file.name) is None]
        if missing:
            lines = [f"\n  {file.url} (md5 {file.md5})" for file in missing]
            raise DataError(
                f"{name} is not in {folder}. --download fetches it; or put there:{''.join(lines)}"
            )
        return
    for file in files:
        path = find(folder, file.name)
        if path is None:
            fetch(file, folder)
        elif path.name == file.name:
            _check_published(path, file)


def find(folder: Path, name: str) -> Path | None:
    """Returns where a file is, packed or, for `NAME.gz`, as `NAME`; None where it isn't."""
    for path in (folder / name, folder / name.removesuffix(".gz")):
        if path.is_file() and not path.name.endswith(".tar"):
            return path
    return None


def _check_published(path: Path, file: Published) -> None:
    sum_so_far = _md5()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                sum_so_far.update(chunk)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    digest = sum_so_far.hexdigest()
    if digest != file.md5:
        raise DataError(
            f"{path} is damaged or another file: its md5 is {digest}, that of {file.url} is"
            f" {file.md5}. Move it away, and --download fetches it"
        )


def _md5() -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False)


def fetch(file: Published, folder: Path) -> None:
    """Downloads a file into a folder; it gets its name when it is whole and has the checksum.

    Raises:
        DataError: it can't be had, can't be written, or has another checksum.
    """
    # The process's number: two runs that fetch at once don't write into each other's file.
    unfinished = folder / f"{file.name}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {folder}: {error.strerror}") from error
    try:
        digest, size = _copy(file, unfinished)
        if digest != file.md5:
            raise DataError(
                f"{file.url} gave {size:,} bytes with md5 {digest}, not {file.md5};"
                " nothing was kept"
            )
        os.replace(unfinished, folder / file.name)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DataError(f"cannot fetch {file.url} into {folder}: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _copy(file: Published, path: Path) -> tuple[str, int]:
    """Writes what the address gives, and returns its md5 and its size in bytes."""
    digest, size = _md5(), 0
    with urllib.request.urlopen(file.url, timeout=TIMEOUT) as source, path.open("wb") as target:
        total = int(source.headers.get("Content-Length", 0)) or None
        with tqdm(
            total=total, desc=file.name, unit="B", unit_scale=True, disable=not sys.stderr.isatty()
        ) as bar:
            while chunk := source.read(CHUNK):
                target.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                bar.update(len(chunk))
        target.flush()
        os.fsync(target.fileno())
    return digest.hexdigest(), size
