"""Result files: what was measured, on which machine, with which versions, by which commands."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]
_PEERS = ("deepspeed", "bitsandbytes", "torchao", "torch-optimi", "apex")


def machine() -> dict[str, Any]:
    """Describes the machine: processors, caches, memory, accelerator."""
    info: dict[str, Any] = {
        "cpu": _search(r"^model name\s*:\s*(.+)$", "/proc/cpuinfo") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "l2": _cache_size(2),
        "l3": _cache_size(3),
        "memory_gib": round(int(_search(r"^MemTotal:\s+(\d+)", "/proc/meminfo") or 0) / 2**20, 1),
        "system": f"{platform.system()} {platform.release()}",
    }
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties("cuda")
        info["gpu"] = gpu.name
        info["gpu_memory_gib"] = round(gpu.total_memory / 2**30, 1)
        info["gpu_processors"] = gpu.multi_processor_count
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
    """Versions of all that takes part; of fusedopt also compiler, instruction set and a hash."""
    import fusedopt
    from fusedopt import _C, _build_info

    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fusedopt": fusedopt.__version__,
        "compiler": _build_info.COMPILER,
        "isa": _C.isa(),
        "build": hashlib.sha256(Path(_C.__file__).read_bytes()).hexdigest()[:12],
    }
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    if torch.cuda.is_available():
        found["cuda_kernels"] = _build_info.CUDA
    for peer in _PEERS:
        try:
            found[peer] = importlib.metadata.version(peer)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def new_result(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Says where rows come from that are going to be measured.

    A result has one machine and one set of versions. It may be measured in parts; each has its
    command, date and load average before it began, and each row says of which `part` it is.
    """
    part = {
        "command": " ".join(["python -m", f"benchmarks.{module}", shlex.join(arguments)]).strip(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "load": round(os.getloadavg()[0], 2),
    }
    return {
        "benchmark": module,
        "machine": machine(),
        "versions": versions(),
        "parts": [part],
        "rows": [],
    }


def extended(old: dict[str, Any], new: dict[str, Any], case: Sequence[str]) -> dict[str, Any]:
    """Puts two results together: a case measured in both is taken from the new one.

    Args:
        old: The earlier result.
        new: The later one.
        case: The fields of a row that tell cases apart.

    Raises:
        ValueError: They are of different benchmarks, machines or versions.
    """
    for key in ("benchmark", "machine", "versions"):
        if old.get(key) != new[key]:
            raise ValueError(f"it has {_difference(key, old.get(key), new[key])}")

    def case_of(row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in case)

    again = {case_of(row) for row in new["rows"]}
    kept = [row for row in old["rows"] if case_of(row) not in again]
    used = sorted({row["part"] for row in kept})
    rows = [{**row, "part": used.index(row["part"])} for row in kept]
    rows += [{**row, "part": len(used)} for row in new["rows"]]
    return {**new, "parts": [*(old["parts"][i] for i in used), *new["parts"]], "rows": rows}


def _difference(key: str, old: Any, new: Any) -> str:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return f"{key} {old}, not {new}"
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return "; ".join(f"{name} {old.get(name)}, not {new.get(name)}" for name in names)


class Record:
    """A measurement under way, whose result file is complete after each case.

    Args:
        result: What `new_result` returns.
        path: The file, or None. One that exists is extended.
        case: The fields of a row that tell cases apart.
        afresh: Rename a file of another build or machine, to FILE.old, and begin a new one.

    Raises:
        ValueError: The file can't be extended.
        OSError: It can't be written.
    """

    def __init__(
        self,
        result: dict[str, Any],
        path: Path | None,
        case: Sequence[str],
        afresh: bool = False,
    ) -> None:
        self.result = result
        self._path, self._case = path, case
        if path is not None:
            if afresh:
                _put_aside(path, result)
            self._merged()
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a folder")
            with tempfile.TemporaryFile(dir=path.parent):  # root's rights say nothing in /proc
                pass

    def add(self, rows: Sequence[Row]) -> None:
        """Appends rows, and saves."""
        self.replace([*self.result["rows"], *rows])

    def replace(self, rows: Sequence[Row]) -> None:
        """Sets all rows, and saves."""
        self.result["rows"] = [{**row, "part": 0} for row in rows]
        if self._path is not None and self.result["rows"]:
            try:
                save(self._merged(), self._path)
            except OSError as error:
                raise SystemExit(f"--json: can't write {self._path}: {error}") from error

    def _merged(self) -> dict[str, Any]:
        """The result together with what the file holds by now."""
        if self._path is None or not self._path.is_file():
            return self.result
        try:
            return extended(load(self._path), self.result, self._case)
        except ValueError as error:
            advice = "delete it, or name another file"
            raise ValueError(f"can't extend {self._path}: {error} ({advice})") from error


def _put_aside(path: Path, result: dict[str, Any]) -> None:
    """Renames a file of the same benchmark that is of another build or machine."""
    if not path.is_file():
        return
    old = load(path)
    differences = [
        _difference(key, old.get(key), result[key])
        for key in ("machine", "versions")
        if old.get(key) != result[key]
    ]
    if differences and old.get("benchmark") == result["benchmark"]:
        kept = path.with_name(f"{path.name}.old")
        path.replace(kept)
        print(f"{path} begins afresh, because it has {'; '.join(differences)}. It is now {kept}.")


@contextlib.contextmanager
def recording(
    parser: argparse.ArgumentParser,
    module: str,
    arguments: Sequence[str],
    path: Path | None,
    case: Sequence[str],
    afresh: bool = False,
) -> Iterator[Record]:
    """Gives a record to a command, and says what became of it.

    A file that exists is extended: cases that are measured again are replaced, others kept. One
    that can't be is refused before anything is measured. Ctrl-C leaves what was measured so far.
    """
    try:
        record = Record(new_result(module, arguments), path, case, afresh)
    except (OSError, ValueError) as error:
        parser.error(f"--json: {error}")
    try:
        yield record
    except KeyboardInterrupt:
        kept = f"; {path} has what was measured" if path and record.result["rows"] else ""
        print(f"\nStopped{kept}", file=sys.stderr)
        raise SystemExit(130) from None
    if path is not None:
        print(f"Wrote {path}")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds the option that names the result file."""
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write a result file; one that exists is extended, and the same cases are replaced",
    )


def save(result: dict[str, Any], path: Path) -> None:
    """Writes a result file, one row per line, in one go: readers see the old one or the new one."""
    head = {key: value for key, value in result.items() if key != "rows"}
    rows = ",\n".join("    " + json.dumps(_rounded(row)) for row in result["rows"])
    text = json.dumps(head, indent=2).removesuffix("\n}") + f',\n  "rows": [\n{rows}\n  ]\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _rounded(value: Any) -> Any:
    """The same with six significant digits."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def load(path: Path) -> dict[str, Any]:
    """Reads a result file.

    Raises:
        ValueError: It isn't one.
    """
    try:
        result = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no result file: {error}") from error
    if not isinstance(result, dict) or "parts" not in result or "rows" not in result:
        raise ValueError(f"{path} is no result file of these benchmarks")
    return result


def setting(result: dict[str, Any]) -> str:
    """Machine, versions and dates in one line."""
    where, what = result["machine"], result["versions"]
    device = f"{where['cpu']}, {where['cores']} cores, {what['isa']}"
    if any(row.get("device") == "cuda" for row in result["rows"]):
        device = f"{where.get('gpu')}, CUDA {what.get('cuda')}; {device}"
    dates = [part["date"] for part in result["parts"]]
    when = dates[0] if len(dates) == 1 else f"{min(dates)} to {max(dates)}"
    return (
        f"{device}; torch {what['torch']}, fusedopt {what['fusedopt']} ({what['compiler']}); {when}"
    )


def provenance(result: dict[str, Any]) -> str:
    """The setting, and the commands of the parts."""
    commands = " and ".join(dict.fromkeys(f"`{part['command']}`" for part in result["parts"]))
    return f"{setting(result)}; {commands}"
