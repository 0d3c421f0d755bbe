"""Training runs in processes that end themselves in the middle, for tests of resuming."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ranks import FORKSERVER


def start(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """Starts a function of this module in a process of its own."""
    process = FORKSERVER.Process(target=target, args=arguments)
    process.start()
    return process


def _train(options: list[str]) -> None:
    import torch

    from fusedopt.train import cost, folder, main

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # as conftest.py
    cost.ROUNDS = 1
    folder.draw_run = lambda rows, file, *_: file.write(b"PNG")
    with contextlib.redirect_stdout(io.StringIO()):
        main(options)


def _kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train_until(event: int, folder: Path, options: list[str]) -> None:
    """Trains until the process has written, renamed or removed so many files in `folder`.

    What it dies of is SIGKILL, before it goes on, or in the middle of writing a checkpoint.
    """
    left = event

    def watch(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if name not in ("open", "os.rename", "os.remove"):
            return
        if not str(arguments[0]).startswith(str(folder)) or arguments[1:2] == ("r",):
            return
        left -= 1
        if left == 0:
            _kill_itself()

    import torch

    save = torch.save

    def save_and_count(content: object, file: io.RawIOBase) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            whole = io.BytesIO()
            save(content, whole)
            file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            file.flush()
            _kill_itself()
        save(content, file)

    torch.save = save_and_count
    sys.addaudithook(watch)
    _train(options)


def train_with_ctrl_c(batch: int, options: list[str]) -> None:
    """Trains until a batch, when the whole process group gets a Ctrl-C, as in a terminal."""
    from fusedopt.train import loop

    # Or else the loader's workers would be the server's children, and out of the group.
    multiprocessing.set_start_method("fork", force=True)
    os.setpgid(0, 0)
    show, left = loop._show, batch

    def show_and_interrupt(*arguments: Any) -> None:
        nonlocal left
        show(*arguments)
        left -= 1
        if left == 0:
            os.killpg(0, signal.SIGINT)

    loop._show = show_and_interrupt
    sys.stderr = (Path(options[options.index("--out") + 1]).parent / "stderr").open("a", 1)
    _train(options)
