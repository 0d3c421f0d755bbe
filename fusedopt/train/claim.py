"""A folder of the script's own, without other files, to which no other process writes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection
from pathlib import Path
from typing import TextIO

from fusedopt.train.options import UserError

LOCK = "lock"
_KINDS = ("run", "comparison")


def require_own(path: Path, kind: str, names: Collection[str] | None = None) -> None:
    """Checks that a folder can become what is going to be written, or has begun to.

    Args:
        path: may be missing.
        kind: "run" or "comparison".
        names: of files that such a folder may have already; None for any.

    Raises:
        UserError: there is something else in it.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:  # TensorBoard's writer can't
        raise UserError(f"--out: {str(path)!r} is no name in UTF-8") from None
    try:
        found = sorted(os.listdir(path))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"--out: cannot write to {path}: {error.strerror}") from error
    mark = _read_mark(path)
    if found == [LOCK] and mark == "":  # a process that died at once
        return
    others = [] if names is None else [name for name in found if name not in names]
    if mark == _mark(kind) and not others:
        return
    for other in _KINDS:
        if mark == _mark(other) != _mark(kind):
            raise UserError(f"--out: {path} holds a {other}; name another folder")
    if found:
        raise UserError(
            f"--out: {path} isn't empty, and holds no {kind}: it has {(others or found)[0]};"
            " name another folder"
        )


def _mark(kind: str) -> str:
    return f"a {kind} of fusedopt.train\n"


def _read_mark(path: Path) -> str | None:
    try:
        return (path / LOCK).read_text()
    except (OSError, ValueError):
        return None


def lock(path: Path, kind: str) -> TextIO:
    """Makes a folder if there is none, and keeps other processes from writing to it.

    Returns:
        What has to be closed to let go of it.

    Raises:
        UserError: it can't be written to, or another process does.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / LOCK).open("a")
    except OSError as error:
        raise UserError(f"--out: cannot write to {path}: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a dead process's is free
        if file.tell() == 0:
            file.write(_mark(kind))
            file.flush()
    except BlockingIOError:
        file.close()
        raise UserError(f"--out: another process is writing to {path}") from None
    except OSError as error:
        file.close()
        raise UserError(f"--out: cannot write to {path}: {error.strerror}") from error
    return file
