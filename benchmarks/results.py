"""Result files: what was measured, on which machine, with which versions, by which command."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]
_PEERS = ("deepspeed", "bitsandbytes", "torchao", "torch-optimi", "apex")


def machine() -> dict[str, Any]:
    """Describes the machine: processors, caches, memory, load before the run, accelerator."""
    info: dict[str, Any] = {
        "cpu": _search(r"^model name\s*:\s*(.+)$", "/proc/cpuinfo") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "l2": _cache_size(2),
        "l3": _cache_size(3),
        "memory_gib": round(int(_search(r"^MemTotal:\s+(\d+)", "/proc/meminfo") or 0) / 2**20, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load": round(os.getloadavg()[0], 2),
    }
    if torch.cuda.is_available():
        info["gpu"] = torch.cuda.get_device_name()
    return info


def _search(pattern: str, path: str) -> str | None:
    try:
        found = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    except OSError:
        return None
    return found[1] if found else None


def _cache_size(level: int) -> str | None:
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if (index / "level").read_text().strip() == str(level):
            return (index / "size").read_text().strip()
    return None


def versions() -> dict[str, str]:
    """Versions of everything that takes part, and fusedopt's compiler and instruction set."""
    import fusedopt
    from fusedopt import _C, _build_info

    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fusedopt": fusedopt.__version__,
        "compiler": _build_info.COMPILER,
        "isa": _C.isa(),
    }
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    for peer in _PEERS:
        try:
            found[peer] = importlib.metadata.version(peer)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def new_result(module: str, arguments: Sequence[str], rows: list[Row]) -> dict[str, Any]:
    """Puts rows together with where they come from."""
    return {
        "command": " ".join(["python -m", module, *arguments]),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
    }


def save(result: dict[str, Any], path: Path) -> None:
    """Writes a result file, one row per line."""
    head = {key: value for key, value in result.items() if key != "rows"}
    rows = ",\n".join("    " + json.dumps(_rounded(row)) for row in result["rows"])
    text = json.dumps(head, indent=2).removesuffix("\n}") + f',\n  "rows": [\n{rows}\n  ]\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _rounded(value: Any) -> Any:
    """The same with six significant digits."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def load(path: Path) -> dict[str, Any]:
    """Reads a result file."""
    return json.loads(path.read_text())


def provenance(result: dict[str, Any]) -> str:
    """One line on where a result comes from."""
    where, what = result["machine"], result["versions"]
    device = where.get("gpu") or f"{where['cpu']}, {where['cores']} cores, {what['isa']}"
    return (
        f"{device}; torch {what['torch']}, fusedopt {what['fusedopt']} ({what['compiler']}); "
        f"{result['date']}; `{result['command']}`"
    )


def merge(runs: Sequence[list[Row]], key: Iterable[str]) -> list[Row]:
    """Merges the rows of several runs: of each number the median.

    Args:
        runs: The rows of each run, in the same order.
        key: The fields that tell rows apart.
    """
    if len(runs) == 1:
        return runs[0]
    names = list(key)
    by_key: dict[tuple[Any, ...], list[Row]] = {}
    for rows in runs:
        for row in rows:
            by_key.setdefault(tuple(row[name] for name in names), []).append(row)
    merged = []
    for same in by_key.values():
        row = _median_of(same)
        row["runs"] = len(same)
        ratios = [other["ratio"]["median"] for other in same if other.get("ratio")]
        if ratios:
            row["ratio_of_runs"] = [min(ratios), max(ratios)]
        merged.append(row)
    return merged


def _median_of(values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    if not known:
        return None
    if isinstance(known[0], dict):
        keys = dict.fromkeys(key for value in known for key in value)
        return {key: _median_of([value.get(key) for value in known]) for key in keys}
    if isinstance(known[0], int | float) and not isinstance(known[0], bool):
        return known[0] if len(set(known)) == 1 else statistics.median(known)
    return statistics.mode(known) if not isinstance(known[0], list) else known[0]
