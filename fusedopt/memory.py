"""How much memory the system can still give."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
# Per version of Linux' control groups: limit, use, and the line of what can be given back.
_GROUPS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)


def free_memory(groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Returns the bytes that this process may still get without another losing some, or None.

    Args:
        groups: Where a container sees the control group that limits it.
    """
    free = [_line(_MEMINFO, "MemAvailable:", 1024)]
    for limit, used, reclaimable in _GROUPS:
        most, now = _number(groups / limit), _number(groups / used)
        if most is not None and now is not None:
            stat = (groups / used).with_name("memory.stat")
            free.append(most - now + (_line(stat, reclaimable) or 0))
    known = [number for number in free if number is not None]
    return max(0, min(known)) if known else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there; "max"
        return None


def _line(path: Path, name: str, unit: int = 1) -> int | None:
    """Returns the number behind a name, in a file that has a line for each."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.split()[:1] == [name]]
    return int(found[0]) * unit if found else None
