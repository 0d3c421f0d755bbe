"""This process among those that train together; alone, it is the first of one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def launched() -> bool:
    """Returns whether torchrun, or something like it, has started this process among others."""
    by_torchrun = {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ)
    return _joined() or (dist.is_available() and by_torchrun)


def restarted() -> bool:
    """Returns whether torchrun starts this run again, after a process has failed."""
    return launched() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Returns this process's number, from 0."""
    if _joined():
        return dist.get_rank()
    return int(os.environ["RANK"]) if launched() else 0


def size() -> int:
    """Returns the number of processes that have joined each other."""
    return dist.get_world_size() if _joined() else 1


def say(text: str) -> None:
    """Prints a line at once, in the first process only."""
    if rank() == 0:
        print(text, flush=True)


@contextlib.contextmanager
def join(device: str) -> Iterator[None]:
    """Joins the processes that were launched with this one, if there are any.

    Args:
        device: "cuda" becomes the GPU of this process's number on its machine.
    """
    if not launched() or _joined():
        yield
        return
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, own_rank, processes = next(dist.rendezvous("env://"))
    # Without --standalone, torchrun 2.13 keeps the addresses of processes that are no more.
    store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=processes)
    yield
    dist.destroy_process_group()  # not after an error: the others may be gone


def in_first(action: Callable[[], T]) -> T | None:
    """Does something in the first process while the others wait; what it raises, all raise.

    Returns:
        The action's result, or None in the other processes.
    """
    if size() == 1:
        return action()
    result, errors = None, [None]
    if rank() == 0:
        try:
            result = action()
        except Exception as error:
            errors = [error]
    dist.broadcast_object_list(errors, src=0)
    if errors[0] is not None:
        raise errors[0]
    return result


def add_up(values: Tensor) -> None:
    """Replaces the values by their sums over all processes."""
    if size() > 1:
        dist.all_reduce(values)


def any_of(flag: bool) -> bool:
    """Returns whether the flag is set in some process."""
    if size() == 1:
        return flag
    flags = torch.tensor(float(flag))
    dist.all_reduce(flags)
    return bool(flags)


def gather(value: Any) -> list[Any]:
    """Returns every process's value, by rank."""
    values = [value] * size()
    if size() > 1:
        dist.all_gather_object(values, value)
    return values


def share_buffers(model: nn.Module) -> None:
    """Gives all processes the first one's buffers: each norm counts what its own process sees."""
    if size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
