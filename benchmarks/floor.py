"""The physical limit of a step: a kernel that moves the same bytes and computes next to nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def make_floor(states: int, bytes_per_operand: int, device: str) -> Callable[[], object]:
    """Returns a function that reads one array, and reads and writes `1 + states` others.

    On the CPU that is one pass in C++ over all arrays side by side, shared among torch's threads
    like a sweep. On CUDA it is torch's copy of as many bytes in all, half read and half written.

    Args:
        states: How many state tensors the step has, besides parameter and gradient.
        bytes_per_operand: The size of one array.
        device: "cpu" or "cuda".
    """
    words = max(1, bytes_per_operand // 4)
    if device == "cuda":
        total = words * (3 + 2 * states) // 2
        source = torch.full((total,), 3, dtype=torch.int32, device=device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)
    from fusedopt import _C

    read = _filled(words, 0x5A5A5A5A)
    updated = [_filled(words, 0x01020304 + k) for k in range(1 + states)]
    return lambda: _C.stream(read, updated)


def _filled(words: int, value: int) -> Tensor:
    return torch.full((words,), value, dtype=torch.int32)
