"""This process among those that train together; alone, it is the first of one."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
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
    """Prints a line at once, in the first process only.

    Names of files and classes may have letters that the terminal doesn't know, or bytes that are
    none; those are written as escapes.

    Raises:
        BrokenPipeError: nobody reads on.
        UserError: the output takes no more for another reason.
    """
    from fusedopt.train.options import UserError  # which needs this module

    if rank() > 0:
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"cannot print: {error.strerror}") from error


@contextlib.contextmanager
def join(device: str) -> Iterator[None]:
    """Joins the processes that were launched with this one, if there are any.

    At the end all leave together. gloo's threads end with the last reference to the process group,
    and a process that exits while they run may abort.

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
    # Imported later, their functions would have the group among their defaults, and keep it.
    importlib.import_module("torch.distributed.nn")
    importlib.import_module("torch.distributed.optim")
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=processes)
    yield
    # Not after an error: the others may be gone.
    add_up(torch.zeros(1))
    gc.collect()  # DDP is in cycles
    dist.destroy_process_group()


def in_first(action: Callable[[], T]) -> T | None:
    """Does something in the first process while the others wait; what it raises, all raise.

    Returns:
        The action's result, or None in the other processes.
    """
    result: list[T] = []
    from_first(lambda: result.append(action()))
    return result[0] if result else None


def from_first(action: Callable[[], T]) -> T:
    """Does something in the first process, and returns its result, or raises its error, in all."""
    if size() == 1:
        return action()
    shared: list[Any] = [None, None]
    if rank() == 0:
        try:
            shared[0] = action()
        except Exception as error:
            shared[1] = error
    dist.broadcast_object_list(shared, src=0)
    if shared[1] is not None:
        raise shared[1]
    return shared[0]


def add_up(values: Tensor) -> None:
    """Replaces the values by their sums over all processes."""
    if size() > 1:
        dist.all_reduce(values)


def greatest(*values: int) -> list[int]:
    """Returns for each value the greatest that some process has."""
    if size() == 1:
        return list(values)
    all_values = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(all_values, dist.ReduceOp.MAX)
    return all_values.tolist()


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
