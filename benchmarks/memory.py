"""Peak memory of a step beyond what it began with."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import torch


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {key}")
    return int(found[1]) * 1024


def peak_during(step: Callable[[], object], device: str) -> int | None:
    """Returns how many bytes `step` needed at its peak beyond what was in use before.

    On CUDA, torch's allocator counts. On the CPU the kernel does, in resident pages: whoever
    allocates is seen. glibc hands its free memory back first, or a temporary could hide in what an
    earlier one left; then Linux' high-water mark is set back to what is resident (proc(5),
    clear_refs). Pages are 4 KiB and counted in batches: a few hundred KiB are noise.

    Returns:
        Bytes, or None where the system doesn't tell.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with contextlib.suppress(AttributeError, OSError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        step()
        return max(0, _status("VmHWM") - before)
    except OSError:
        return None


def available() -> int | None:
    """How many bytes could still be used, by system and container, or None if neither tells."""
    free = []
    with contextlib.suppress(OSError):
        text = Path("/proc/meminfo").read_text()
        found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
        free += [int(found[1]) * 1024] if found else []
    with contextlib.suppress(OSError, ValueError):  # "max" is no limit
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free.append(limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return min(free, default=None)
