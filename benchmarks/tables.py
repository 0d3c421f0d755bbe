"""Tables of results: aligned for the terminal, Markdown for the READMEs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.results import Row

STEP_HEAD = [
    "", "one step", "p10–p90", "cold", "torch's best / it", "GB/s", "% of floor", "peak memory",
]  # fmt: skip
CUDA_HEAD = [
    "", "on the device", "p10–p90", "torch's best / it", "GB/s", "% of copy", "host", "until done",
    "peak memory", "syncs with GradScaler",
]  # fmt: skip
LATE = "* not all was launched while the device slept: its time may hold waiting for the host"


def seconds_text(seconds: float) -> str:
    """Three digits with a unit, as in 12.3 µs."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if abs(seconds) * scale >= 1:
            return f"{digits(seconds * scale)} {unit}"
    return f"{digits(seconds * 1e9)} ns"


def digits(value: float) -> str:
    """Three significant digits, without an exponent; of small values two decimals."""
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def bytes_text(count: float | None) -> str:
    """A size in MiB."""
    return "" if count is None else f"{count / 2**20:,.1f} MiB"


def align(rows: Sequence[Sequence[str]]) -> str:
    """A table for the terminal: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table for a README: the first row is its head."""
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])


def step_cells(row: Row) -> list[str]:
    """One implementation's line in the table of a case."""
    name, seconds = row["implementation"], row["seconds"]
    limits = [digits(row["gb_per_s"]), f"{row['floor_percent']:.0f} %"]
    shown = [
        name if not row["status"] else f"{name} ({row['status']})",
        seconds_text(seconds["median"]) + late_mark(row),
        "–".join(seconds_text(seconds[key]) for key in ("p10", "p90")),
    ]
    if row["device"] == "cpu":
        cold = seconds_text(row["first_seconds"]["median"]) if "first_seconds" in row else ""
        return [*shown, cold, ratio_text(row), *limits, bytes_text(row["peak_bytes"])]
    host, done = (seconds_text(row[key]["median"]) for key in ("host_seconds", "done_seconds"))
    waits = row.get("scaler_syncs")
    return [
        *shown,
        ratio_text(row),
        *limits,
        host,
        done,
        bytes_text(row["peak_bytes"]),
        "" if waits is None else f"{waits:g}",
    ]


def ratio_text(row: Row, key: str = "ratio") -> str:
    """A ratio with the 10th and the 90th percentile, or nothing."""
    ratio = row.get(key)
    if ratio is None:
        return ""
    return f"{digits(ratio['median'])}× ({digits(ratio['p10'])}–{digits(ratio['p90'])})"


def late_mark(row: Row) -> str:
    """A star where the device may have waited for the host: see `timing.CudaClock`."""
    return "*" if row.get("late_percent") else ""


def step_table(rows: Iterable[Row]) -> str:
    """The table of one case for the terminal; what couldn't run is named below it."""
    all_rows = list(rows)
    measured = [row for row in all_rows if "seconds" in row]
    by_status: dict[str, list[str]] = {}
    for row in all_rows:
        if "seconds" not in row:
            by_status.setdefault(row["status"], []).append(row["implementation"])
    missing = [f"  {', '.join(names)}: {status}" for status, names in by_status.items()]
    head = CUDA_HEAD if measured and measured[0]["device"] != "cpu" else STEP_HEAD
    table = [align([head, *map(step_cells, measured)])] if measured else []
    late = [f"  {LATE}"] if any(map(late_mark, measured)) else []
    return "\n".join([*table, *late, *missing])
