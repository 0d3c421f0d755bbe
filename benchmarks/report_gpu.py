"""The READMEs' tables of what was measured on GPUs, or what wasn't for want of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import chart, tables, targets
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.measure import FLOOR
from benchmarks.results import Row, load, provenance

NONE = "No GPU has run the benchmarks yet"
# The README's columns: workload, what of it, and where a row has it.
_SPEED = (
    ("gpt2", "GPT-2, device time", "ratio"),
    ("gpt2", "GPT-2, % of a copy's bandwidth", "floor_percent"),
    ("resnet50", "ResNet-50, device time", "ratio"),
    ("resnet50", "ResNet-50, host time", "host_ratio"),
    ("1000x64", "1000 tensors of 64, until done", "done_ratio"),
)


def found_in(folder: Path) -> list[dict[str, Any]]:
    """All result files of GPUs."""
    results = map(load, sorted(folder.glob("*.json")))
    return [each for each in results if any(row.get("device") == "cuda" for row in each["rows"])]


def missing(rows: Sequence[Row]) -> list[str]:
    """Which targets on CUDA have no figures, in words, and of which optimizers, if others have."""
    found = []
    verdicts = targets.verdicts(rows, "cuda")
    for target in targets.CUDA_TARGETS:
        unknown = {v.optimizer for v in verdicts if v.target is target and v.measured is None}
        lacking = [name for name in targets.OPTIMIZERS if name in unknown]
        details = [] if target.dtype == "float32" else [target.dtype]
        details += lacking if len(lacking) < len(target.bounds) else []
        if lacking:
            found.append(f"{target.what} ({', '.join(details)})" if details else target.what)
    return found


def speed(rows: Sequence[Row]) -> str:
    """How many times longer torch's fastest path takes; optimizers down."""
    by_key = targets.ours(rows, "cuda")
    head = ["float32", *(title for _, title, _ in _SPEED)]
    body = []
    for name in targets.OPTIMIZERS:
        cells = [_speed_cell(by_key.get((w, "float32", name), {}), key) for w, _, key in _SPEED]
        if any(cells):
            body.append([name, *cells])
    return tables.markdown([head, *body])


def _speed_cell(row: Row, key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    return f"{value:.0f} %" if key == "floor_percent" else f"{tables.digits(value['median'])}×"


def steps(rows: Sequence[Row]) -> str:
    """Everything about each case in one line."""
    groups: dict[str, dict[tuple[str, str], dict[str, Row]]] = {}
    for row in sorted((row for row in rows if row["device"] == "cuda"), key=chart.place):
        case = groups.setdefault(row["dtype"], {})
        case.setdefault((row["optimizer"], row["workload"]), {})[row["implementation"]] = row
    parts = []
    for dtype, cases in groups.items():
        measured = {name for case in cases.values() for name in case if "seconds" in case[name]}
        others = [name for name in IMPLEMENTATIONS if name in measured and name != "fusedopt"]
        head = ["case, device time", "fusedopt", "copy", "% of copy", "GB/s", *others,
                "torch's best / ours", "host: ours, torch's / ours",
                "until done: ours, torch's / ours", "peak memory, ours / foreach",
                "syncs, ours / fused"]  # fmt: skip
        body = [[f"{optimizer}, {workload}", *_line(case, others)]
                for (optimizer, workload), case in cases.items()]  # fmt: skip
        parts.append(f"**{dtype}**\n\n{tables.markdown([head, *body])}")
    if any(map(tables.late_mark, rows)):
        parts.append(f"\\{tables.LATE}")
    return "\n\n".join(parts)


def _line(case: Mapping[str, Row], others: Sequence[str]) -> list[str]:
    ours = case.get("fusedopt", {})
    if "seconds" not in ours:
        return [next(iter(case.values()))["status"], *[""] * (8 + len(others))]

    def time(name: str) -> str:
        row = case.get(name, {})
        if "seconds" not in row:
            return "–"
        status = f" ({row['status'].partition(':')[0]})" if row["status"] else ""
        mark = tables.late_mark(row).replace("*", "\\*")
        return tables.seconds_text(row["seconds"]["median"]) + mark + status

    def against(measure: str) -> str:
        text = tables.seconds_text(ours[f"{measure}_seconds"]["median"])
        ratio = ours.get(f"{measure}_ratio")
        return f"{text}, {tables.digits(ratio['median'])}×" if ratio else text

    copy = case.get(FLOOR, {})
    bandwidth = f", {tables.digits(copy['gb_per_s'])} GB/s" if "gb_per_s" in copy else ""
    peaks = [case.get(name, {}).get("peak_bytes") for name in ("fusedopt", "foreach")]
    waits = [case.get(name, {}).get("scaler_syncs") for name in ("fusedopt", "fused")]
    return [
        time("fusedopt"),
        time(FLOOR) + bandwidth,
        f"{ours['floor_percent']:.0f} %",
        tables.digits(ours["gb_per_s"]),
        *map(time, others),
        tables.ratio_text(ours),
        against("host"),
        against("done"),
        " / ".join(tables.bytes_text(peak) or "–" for peak in peaks),
        " / ".join("–" if wait is None else f"{wait:g}" for wait in waits),
    ]


TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "gpu-speed": speed,
    "gpu-targets": lambda rows: targets.table(rows, "cuda"),
    "gpu-steps": steps,
}


def render(kind: str, folder: Path) -> str:
    """One table for each GPU, and what there are no figures for.

    Raises:
        KeyError: There is no such kind of table.
    """
    make, results = TABLES[kind], found_in(folder)
    if not results:
        text = f"{NONE}."
        if kind == "gpu-speed":
            text = (
                f"{NONE}, so there are no figures; `make gpu-check` makes them where there is one."
            )
        return f"{text}\n\n{make([])}\n" if kind == "gpu-targets" else f"{text}\n"
    parts = []
    for result in results:
        text = f"**{result['machine']['gpu']}**\n\n{make(result['rows'])}"
        lacking = missing(result["rows"])
        if lacking and kind == "gpu-speed":
            text += f"\n\nNot measured: {'; '.join(lacking)}."
        parts.append(f"{text}\n\n<sub>{provenance(result)}</sub>\n")
    return "\n".join(parts)
