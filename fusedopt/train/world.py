"""This process among those that train together; alone, it is the first of one."""

from __future__ import annotations

import torch.distributed as dist


def rank() -> int:
    """Returns this process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def size() -> int:
    """Returns the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def say(text: str) -> None:
    """Prints a line at once, in the first process only."""
    if rank() == 0:
        print(text, flush=True)
