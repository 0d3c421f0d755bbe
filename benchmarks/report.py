"""Writes the tables of the READMEs and of docs/ from result files, and the charts.

A table stands between `<!-- begin table: KIND FILE... -->` and `<!-- end table -->`, where FILE is
a result file's name without its ending, or GPU for the result files of all GPUs. Run
`python -m benchmarks.report` after a measurement.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import (
    accuracy,
    chart,
    hooks,
    host,
    landscapes,
    offload,
    phase,
    precision,
    report_gpu,
    strides,
    tables,
    targets,
    train,
    versions,
)
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.measure import CASE, FLOOR
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.programs import chart as programs_chart
from benchmarks.programs import table as programs_table
from benchmarks.results import RESULTS, Row, load, provenance
from benchmarks.workloads import WORKLOADS

DEFAULT = "for-loop"  # torch's path on the CPU if none is chosen
ROOT = Path(__file__).resolve().parents[1]
READMES = (
    ROOT / "README.md",
    *sorted(ROOT.glob("benchmarks/**/*.md")),
    *sorted(ROOT.glob("docs/*.md")),
)
PROGRAMS_CHART = "docs/figures/programs.png"
_TABLE = re.compile(r"(<!-- begin table: (\S+) ([^>\n]+) -->\n).*?(<!-- end table -->)", re.DOTALL)


def _title(workload: str) -> str:
    return WORKLOADS[workload].title if workload in WORKLOADS else workload


def speed(result: dict[str, Any]) -> str:
    """How many times faster than torch's fastest path: optimizers down, workloads across."""
    parts = []
    grouped = chart.panels(result["rows"])
    for dtype in dict.fromkeys(dtype for _, dtype in grouped):
        columns = [workload for workload, other in grouped if other == dtype]
        cells: dict[str, dict[str, str]] = {name: {} for name in OPTIMIZERS}
        for workload in columns:
            for row in grouped[workload, dtype]:
                cells[row["optimizer"]][workload] = f"{tables.digits(row['ratio']['median'])}×"
        head = [dtype, *map(_title, columns)]
        body = [[name, *(row.get(w, "") for w in columns)] for name, row in cells.items() if row]
        parts.append(tables.markdown([head, *body]))
    return "\n\n".join(parts)


def speed_over_default(result: dict[str, Any]) -> str:
    """Torch's default over ours, and torch's fastest path over ours in brackets: float32."""
    rows = result["rows"]
    default = {  # by turns, as ours is: where the default is the fastest, both are the same
        tuple(row[name] for name in CASE): row["ratio"]["median"]
        for row in rows
        if row["implementation"] == DEFAULT and "ratio" in row
    }
    grouped = {w: ours for (w, dtype), ours in chart.panels(rows).items() if dtype == "float32"}
    cells: dict[str, dict[str, str]] = {name: {} for name in OPTIMIZERS}
    for workload, ours in grouped.items():
        for row in ours:
            fastest = row["ratio"]["median"]
            share = default.get(tuple(row[name] for name in CASE))
            over = "–" if share is None else f"{tables.digits(fastest / share)}×"
            cells[row["optimizer"]][workload] = f"{over} ({tables.digits(fastest)}×)"
    head = ["torch's default (torch's fastest)", *map(_title, grouped)]
    body = [[name, *(row.get(w, "") for w in grouped)] for name, row in cells.items() if row]
    return tables.markdown([head, *body])


def steps(result: dict[str, Any]) -> str:
    """Everything about each case in one line, with a column for whoever was measured."""
    groups: dict[tuple[str, int], dict[tuple[str, str], dict[str, Row]]] = {}
    for row in sorted(result["rows"], key=chart.place):
        cases = groups.setdefault((row["dtype"], row["threads"]), {})
        case = cases.setdefault((row["optimizer"], row["workload"]), {})
        case[row["implementation"]] = row
    parts = []
    for (dtype, threads), cases in groups.items():
        measured = {name for case in cases.values() for name in case if "seconds" in case[name]}
        others = [name for name in IMPLEMENTATIONS if name in measured and name != "fusedopt"]
        head = ["case", "fusedopt", "floor", "% of floor", "GB/s", *others, "torch's best / ours",
                "cold: ours, torch's / ours", "peak memory, ours / foreach"]  # fmt: skip
        body = [[f"{optimizer}, {workload}", *_step_line(case, others)]
                for (optimizer, workload), case in cases.items()]  # fmt: skip
        title = f"**{dtype}, {threads} thread{'s' * (threads != 1)}**"
        parts.append(f"{title}\n\n{tables.markdown([head, *body])}")
    return "\n\n".join(parts)


def _step_line(case: dict[str, Row], others: Sequence[str]) -> list[str]:
    ours = case.get("fusedopt", {})
    if "seconds" not in ours:
        return [next(iter(case.values()))["status"], *[""] * (6 + len(others))]

    def time(name: str) -> str:
        row = case.get(name, {})
        if "seconds" not in row:
            return "–"
        return tables.seconds_text(row["seconds"]["median"]) + " (wrong)" * bool(row["status"])

    ratio = ours.get("ratio")
    between = "" if not ratio else (
        f"{tables.digits(ratio['median'])}× "
        f"({tables.digits(ratio['p10'])}–{tables.digits(ratio['p90'])})"
    )  # fmt: skip
    peaks = [case.get(name, {}).get("peak_bytes") for name in ("fusedopt", "foreach")]
    memory = " / ".join(tables.bytes_text(peak) or "–" for peak in peaks)
    limit = [f"{ours['floor_percent']:.0f} %", tables.digits(ours["gb_per_s"])]
    return [time("fusedopt"), time(FLOOR), *limit, *map(time, others), between, _cold(case), memory]


def _cold(case: dict[str, Row]) -> str:
    """The first step of a turn, ours and how many times longer torch's best takes."""
    ours = case["fusedopt"]
    if "first_seconds" not in ours:
        return "–"
    own = ours["first_seconds"]["median"]
    best = case.get(ours.get("torch_best", ""), {}).get("first_seconds")
    over = f", {tables.digits(best['median'] / own)}×" if best else ""
    return f"{tables.seconds_text(own)}{over}"


def host_costs(result: dict[str, Any]) -> str:
    """Costs per parameter, in time and, if counted, in instructions."""
    units = dict.fromkeys(row["unit"] for row in result["rows"])
    return "\n\n".join(
        f"**{unit} per parameter**\n\n{tables.markdown(host.table_rows(result['rows'], unit))}"
        for unit in units
    )


def programs(result: dict[str, Any]) -> str:
    """Everything about each program in one line, the targets, and the libraries' versions."""
    rows = result["rows"]
    table = tables.markdown(programs_table.table_rows(rows))
    libraries = programs_table.libraries(rows)
    return f"{table}\n\n{programs_table.goals(rows)}{libraries and f' With {libraries}.'}"


def gains(result: dict[str, Any]) -> str:
    """Five programs, and the chart of all, for the README."""
    table = tables.markdown(programs_table.gain_rows(result["rows"]))
    return f"{table}\n\n![When it pays]({PROGRAMS_CHART})"


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "speed": speed_over_default,
    "speeds": speed,
    "steps": steps,
    "targets": lambda result: targets.table(result["rows"]),
    "host": host_costs,
    "train": lambda result: tables.markdown(train.table_rows(result["rows"])),
    "programs": programs,
    "gains": gains,
    "hooks": lambda result: tables.markdown(hooks.table_rows(result["rows"])),
    "phase": lambda result: tables.markdown(phase.table_rows(result["rows"])),
    "offload": lambda result: "\n\n".join(map(tables.markdown, offload.all_tables(result["rows"]))),
    "accuracy": lambda result: tables.markdown(accuracy.table_rows(result["rows"])),
    "strides": lambda result: "\n\n".join(map(tables.markdown, strides.all_tables(result["rows"]))),
    "precision": lambda result: "\n\n".join(
        map(tables.markdown, precision.table_rows(result["rows"]))
    ),
    "trajectories": lambda result: tables.markdown(landscapes.trajectory_table(result["rows"])),
    "tolerance": lambda result: tables.markdown(landscapes.tolerance_table(result["rows"])),
    "versions": lambda result: tables.markdown(versions.table_rows(result["rows"])),
    "groups": lambda result: tables.markdown(landscapes.group_table(result["rows"])),
}


def render(kind: str, names: str, folder: Path = RESULTS) -> str:
    """One table as Markdown, with a line on where each of its files comes from.

    Raises:
        KeyError: There is no such kind of table.
    """
    if names == "GPU":
        return report_gpu.render(kind, folder)
    make = TABLES[kind]
    paths = [folder / f"{name}.json" for name in names.split()]
    found = [load(path) for path in paths if path.exists()]
    sources = [f"<sub>{provenance(result)}</sub>" for result in found]
    sources += [f"(No `results/{path.name}` yet.)" for path in paths if not path.exists()]
    rows = [row for result in found for row in result["rows"]]
    table = f"{make({'rows': rows})}\n\n" if found else ""
    return table + "\n\n".join(sources) + "\n"


def update(text: str, folder: Path = RESULTS) -> str:
    """A README's text with its tables made anew."""
    return _TABLE.sub(lambda m: m[1] + render(m[2], m[3], folder) + m[4], text)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if it would")
    parser.add_argument("--no-charts", action="store_true", help="make the tables only")
    options = parser.parse_args()
    stale = []
    for readme in filter(Path.exists, READMES):
        text = readme.read_text()
        made = update(text)
        if made != text:
            stale.append(str(readme.relative_to(ROOT)))
            if not options.check:
                readme.write_text(made)
    if options.check and stale:
        raise SystemExit(f"not made from the result files: {', '.join(stale)}")
    if not options.check:
        print(f"Wrote {', '.join(stale) or 'nothing new'}")
    if not options.check and not options.no_charts:
        for path in sorted(RESULTS.glob("*.json")):
            result = load(path)
            if result["benchmark"] == "step":
                draw, png = chart.draw, path.with_suffix(".png")
            elif result["benchmark"] == "programs":
                draw, png = programs_chart.draw, ROOT / PROGRAMS_CHART
            else:
                continue
            draw(result, png)
            print(f"Drew {png.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
