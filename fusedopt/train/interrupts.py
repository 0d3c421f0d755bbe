"""Ctrl-C that waits until the state is whole."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Any

from fusedopt.train import world


class Interrupted(Exception):
    """Training was stopped by the user; its text says how to go on."""


class Interrupts:
    """While entered, remembers the first Ctrl-C; the second one raises KeyboardInterrupt.

    Attributes:
        pending: whether there was one.
    """

    pending = False

    def __enter__(self) -> Interrupts:
        self._process = os.getpid()
        self._before: Any = None
        with contextlib.suppress(ValueError):  # in a thread, where signals don't arrive
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loader's worker: it has this handler too, and the batch is still wanted
        if self.pending:
            raise KeyboardInterrupt
        self.pending = True
        if world.rank() == 0:
            print("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr)
