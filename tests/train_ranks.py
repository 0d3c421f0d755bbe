"""The training script on each of several ranks, for test_train_ranks.py."""

from __future__ import annotations

import contextlib
import io
from typing import Any


def train(*options: object) -> tuple[int, str]:
    """Runs the script, and returns its exit status and what it printed."""
    from fusedopt.train import folder, main

    folder.draw_run = lambda rows, file: file.write(b"PNG")
    output, status = io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            main(list(map(str, options)))
        except SystemExit as error:
            status = int(error.code or 0)
    return status, output.getvalue()


class _Stop(Exception):
    pass


def train_until(batch: int, *options: object) -> None:
    """Runs the script until a batch, and leaves it as an error would."""
    from fusedopt.train import loop

    show, left = loop._show, batch

    def show_or_stop(*arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise _Stop
        show(*arguments)

    loop._show = show_or_stop
    try:
        train(*options)
    except _Stop:
        return
    finally:
        loop._show = show
    raise AssertionError("the run has ended before")
