"""Real processes that form a group over gloo, started once and asked many things."""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

# Imported once by a process from which the others are forked. Of pytest's own process they can't
# be: autograd doesn't work in a fork of a process that has used it.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    [
        "torch._dynamo", "torch.distributed.tensor.parallel", "torch.distributed.fsdp",
        "torch.distributed.checkpoint.state_dict", "torch.distributed.optim", "fusedopt",
        "torch.utils.tensorboard", "fusedopt.train.run", "fusedopt.train.folder",
    ]
)  # fmt: skip
_TIMEOUT = 120.0


def _serve(rank: int, world: int, rendezvous: str, pipe: Connection) -> None:
    """A rank's life: functions come through the pipe, and their results go back."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=_TIMEOUT / 2),
    )
    while (message := pipe.recv()) is not None:
        function, args = message
        try:
            torch.manual_seed(0)
            pipe.send((True, function(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
    dist.destroy_process_group()


class Ranks:
    """A group of processes.

    Attributes:
        broken: Whether something has failed, so that some may wait for others forever.
    """

    def __init__(self, world: int) -> None:
        self.broken = False
        self._folder = tempfile.TemporaryDirectory()
        pairs = [FORKSERVER.Pipe() for _ in range(world)]
        self._pipes = [ours for ours, _ in pairs]
        self._processes = [
            FORKSERVER.Process(
                target=_serve, args=(rank, world, f"{self._folder.name}/rendezvous", theirs)
            )
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self._processes:
            process.start()
        for _, theirs in pairs:
            theirs.close()

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Calls the function on all ranks, and returns the results by rank."""
        for pipe in self._pipes:
            pipe.send((function, args))
        results = []
        for rank, pipe in enumerate(self._pipes):
            try:
                passed, result = pipe.recv() if pipe.poll(_TIMEOUT) else (False, "no answer")
            except EOFError:
                passed, result = False, "the process has ended"
            self.broken = self.broken or not passed
            assert passed, f"rank {rank} of {len(self._pipes)}: {result}"
            results.append(result)
        return results

    def close(self) -> None:
        """Ends the processes: by force, where one has failed and others may wait for it."""
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            with contextlib.suppress(OSError):
                pipe.send(None)
            process.join(0 if self.broken else 10)
            process.kill()
            process.join()
        self._folder.cleanup()


@contextlib.contextmanager
def groups() -> Iterator[Callable[[int], Ranks]]:
    """Gives a group of any size, whose processes start when it is first asked for."""
    started: dict[int, Ranks] = {}

    def get(world: int) -> Ranks:
        if world in started and started[world].broken:
            started.pop(world).close()
        if world not in started:
            started[world] = Ranks(world)
        return started[world]

    try:
        yield get
    finally:
        for group in started.values():
            group.close()
