"""The tables of whole programs: all of them, and five for the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import tables
from benchmarks.programs.measure import PROGRAMS
from benchmarks.programs.program import CLASS, FUSED, TORCH, WHOLE
from benchmarks.results import Row
from benchmarks.targets import Target, Verdict

Case = dict[str, Row]
HEAD = [
    "program", "torch", "torch, fused", "ours, the class", "ours, whole phase",
    "torch / the class", "torch / whole phase", "fused / whole phase",
    "phase's share: torch, the class, whole phase", "result: torch", "ours",
]  # fmt: skip
# At least so many times torch's time, of the whole or of a part.
GOALS = {("ppo", "train()"): 1.8, ("a2c", "train()"): 1.5, ("dqn", ""): 1.7, ("sac", ""): 1.5}
GAIN_HEAD = [
    "program", "torch's optimizer phase, % of the time", "only the class changed",
    "clipping and averages, too", "against torch's fused",
]  # fmt: skip


def cases(rows: Sequence[Row]) -> list[tuple[str, Case]]:
    """What was measured of each program, with a title, in the order of the programs."""
    grouped: dict[tuple[str, int, bool], Case] = {}
    for row in rows:
        key = (row["program"], row["threads"], row["quick"])
        grouped.setdefault(key, {})[row["implementation"]] = row
    several = len({threads for _, threads, _ in grouped}) > 1
    found = []
    for name in PROGRAMS:
        for (program, threads, quick), case in grouped.items():
            if program == name:
                title = PROGRAMS[name].title
                title += f", {threads} thread{'s' * (threads != 1)}" * several + ", quick" * quick
                found.append((title, case))
    return found


def is_measured(case: Case) -> bool:
    """Whether its libraries were there."""
    return TORCH in case


def best(case: Case) -> Row:
    """Ours with the whole phase; where that is no more than the step, with the class."""
    return case.get(WHOLE, case[CLASS])


def table_rows(rows: Sequence[Row]) -> list[list[str]]:
    """One line for each program, and one for each part of it."""
    body = []
    for title, case in cases(rows):
        if not is_measured(case):
            body.append([title, case[CLASS]["status"], *[""] * (len(HEAD) - 2)])
            continue
        body.append([f"{title} ({_optimizer(case)})", *_times(case), *_outcome(case)])
        for part in case[TORCH].get("parts", {}):
            cells = _times({name: row["parts"][part] for name, row in case.items()})
            body.append([f"… of that {part}", *cells, "", "", ""])
    return [HEAD, *body]


def _optimizer(case: Case) -> str:
    path = case[FUSED]["path"]
    name = PROGRAMS[case[TORCH]["program"]].optimizer
    return name if path == "fused" else f"{name}; fused: {path}"


def _times(case: Mapping[str, Any]) -> list[str]:
    """Seconds and ratios, of the whole or of a part."""
    seconds = [
        tables.seconds_text(case[name]["seconds"]["median"]) if name in case else ""
        for name in (TORCH, FUSED, CLASS, WHOLE)
    ]
    ratios = [
        tables.ratio_text(case.get(CLASS, {})),
        tables.ratio_text(case.get(WHOLE, {})),
        tables.ratio_text(case.get(WHOLE, case[CLASS]), "fused_ratio"),
    ]
    return [*seconds, *ratios]


def _outcome(case: Case) -> list[str]:
    shares = [percent(case[name]["share"]) for name in (TORCH, CLASS, WHOLE) if name in case]
    what = PROGRAMS[case[TORCH]["program"]].result
    ours = _result(best(case))
    return [", ".join(shares), f"{what} {_result(case[TORCH])}", ours]


def _result(row: Row) -> str:
    """The median, and the extremes of the seeds."""
    median, least, most = (f"{row['result'][key]:.4g}" for key in ("median", "least", "most"))
    return f"{median} ({least} to {most})"


def percent(share: float) -> str:
    """A share of the time, in percent."""
    return f"{100 * share:.1f} %" if share < 0.0995 else f"{100 * share:.0f} %"


def gain_rows(rows: Sequence[Row]) -> list[list[str]]:
    """Five programs: those that gain least and most, and those at the quarters in between."""
    found = [(title, case) for title, case in cases(rows) if is_measured(case)]
    found.sort(key=lambda each: best(each[1])["ratio"]["median"])
    last = len(found) - 1
    chosen = sorted({round(last * quarter / 4) for quarter in range(5)}) if found else []
    body = []
    for title, case in (found[index] for index in chosen):
        whole = _ratio(case[WHOLE]) if WHOLE in case else "–"
        share, fused = percent(case[TORCH]["share"]), _ratio(best(case), "fused_ratio")
        body.append([title, share, _ratio(case[CLASS]), whole, fused])
    return [GAIN_HEAD, *body]


def goals(rows: Sequence[Row]) -> str:
    """What the programs are meant to gain, and whether the rows show it."""
    measured = {case[TORCH]["program"]: case for _, case in cases(rows) if TORCH in case}
    by_program = {program: best(case) for program, case in measured.items()}
    texts = []
    for (program, part), bound in GOALS.items():
        row = by_program.get(program, {})
        entry = row.get("parts", {}).get(part, {}) if part else row
        target = Target("", program, "", "ratio", {})
        verdict = Verdict(target, "", bound, entry.get("ratio", {}).get("median"))
        most = f", at most {_most(measured[program][TORCH], part):.2f}" if row else ""
        texts.append(f"{program}{f', {part}' if part else ''}: {verdict.text}{most}")
    slower = [name for name, row in by_program.items() if row["ratio"]["p90"] < 1]
    texts.append(f"slower than with torch's default, beyond the noise: {', '.join(slower) or '–'}")
    head = "Targets, torch's default / ours with the whole phase"
    return f"{head} (at most: if that phase took no time): {'; '.join(texts)}."


def _most(row: Row, part: str) -> float:
    """What a program or a part of it, which holds the optimizer phase, can gain of its time."""
    phase = row["share"] * row["seconds"]["median"]
    whole = row["parts"][part] if part else row
    return float(1 / (1 - phase / whole["seconds"]["median"]))


def libraries(rows: Sequence[Row]) -> str:
    """The versions of the libraries, in one line."""
    found = dict.fromkeys(row["libraries"] for row in rows if row.get("libraries"))
    each = dict.fromkeys(library for entry in found for library in entry.split(", "))
    return ", ".join(each)


def _ratio(row: Row, key: str = "ratio") -> str:
    return f"{row[key]['median']:.2f}×"
