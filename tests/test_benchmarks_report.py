"""The benchmarks' command lines, result files, and the tables and charts made from them."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import (  # noqa: E402
    accuracy,
    chart,
    hooks,
    host,
    instructions,
    landscapes,
    offload,
    phase,
    precision,
    report,
    results,
    runs,
    step,
    strides,
    targets,
    timing,
    train,
    versions,
)
from benchmarks.descents import DESCENTS  # noqa: E402
from benchmarks.implementations import IMPLEMENTATIONS  # noqa: E402
from benchmarks.measure import DTYPES, Case, run_case  # noqa: E402
from benchmarks.optimizers import OPTIMIZERS  # noqa: E402
from benchmarks.programs import measure as programs  # noqa: E402
from benchmarks.workloads import WORKLOADS, Workload  # noqa: E402

TINY = Workload("tiny", "two tensors", ((3, 4), (5,)))
PATHS = [IMPLEMENTATIONS[name] for name in ("fusedopt", "fused", "foreach", "for-loop")]


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 1e-5)


def run_step(*arguments: str) -> None:
    step.main([*arguments, "--seconds", "0"])


@pytest.fixture
def own_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "another_network_of_a_user"
    (tmp_path / f"{name}.py").write_text("import torch\ndef make(): return torch.nn.Linear(3, 2)\n")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_the_command_prints_tables_and_writes_a_result_file(
    own_network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "result.json"
    arguments = [
        "--model",
        f"{own_network}:make",
        "--optimizer",
        "sgd",
        "adamw",
        "--json",
        str(path),
    ]
    run_step(*arguments, "--threads", "1")
    printed = capsys.readouterr().out
    assert "adamw · make, 2 tensors · float32 · 1 thread\n" in printed
    assert "  apex: absent: doesn't run on cpu" in printed
    result = results.load(path)
    (part,) = result["parts"]
    assert part["command"].startswith("python -m benchmarks.step --model")
    assert {"date", "load"} <= part.keys() and {"cpu", "cores"} <= result["machine"].keys()
    assert {"python", "torch", "fusedopt", "compiler", "isa", "build"} <= result["versions"].keys()
    assert {row["optimizer"] for row in result["rows"]} == {"sgd", "adamw"}
    assert {"fusedopt", "fused", "deepspeed"} <= {row["implementation"] for row in result["rows"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nothing"], "write package.module:factory"),
        (["--workload", "nothing"], "invalid choice"),
        (["--threads", "0"], "at least 1"),
        (["--threads", "many"], "'many' is neither a number nor all"),
        (["--runs", "0"], "0 is not at least 1"),
        (["--seconds", "-1"], "-1 is not at least 0"),
        (["--seconds", "nan"], "nan is not at least 0"),
        (["--seconds", "x"], "'x' is no number"),
        (["--json", "/"], "--json: / is a folder"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        step.main(["--seconds", "0", *arguments])
    assert message in capsys.readouterr().err


def test_runs_are_merged_by_their_medians() -> None:
    key = ("name",)
    found = [
        [{"name": "a", "seconds": {"median": s}, "ratio": {"median": r}, "torch_best": b}]
        for s, r, b in ((3.0, 1.0, "fused"), (1.0, 5.0, "fused"), (2.0, 2.0, "foreach"))
    ]
    (row,) = runs.merge(found, key)
    assert row["seconds"]["median"] == 2.0 and row["ratio"]["median"] == 2.0
    assert row["torch_best"] == "fused" and row["runs"] == 3
    assert row["ratio_of_runs"] == [1.0, 5.0]


def test_an_interrupted_measurement_leaves_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(case: Case, *rest: Any) -> list[dict[str, Any]]:
        if case.choice.name == "adam":
            raise KeyboardInterrupt
        return [our_row(case.workload.name, optimizer=case.choice.name, status="?") | {"x": 1}]

    monkeypatch.setattr(step, "run_case", interrupted)
    monkeypatch.setattr(step.tables, "step_table", lambda rows: "")
    path = tmp_path / "result.json"
    with pytest.raises(SystemExit, match="130"):
        run_step("--optimizer", "sgd", "adam", "--workload", "1", "--json", str(path))
    assert "Stopped; " in capsys.readouterr().err
    assert [row["optimizer"] for row in results.load(path)["rows"]] == ["sgd"]


def test_runs_in_fresh_processes_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    run_step(
        *["--workload", "1", "--threads", "1", "--implementation", "fusedopt", "for-loop"],
        *["--runs", "2", "--no-memory", "--json", str(path)],
    )
    rows = results.load(path)["rows"]
    assert [row["implementation"] for row in rows] == ["floor", "fusedopt", "for-loop"]
    assert all(row["runs"] == 2 for row in rows)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small result file of each kind."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "SAMPLE_SECONDS", 1e-5)
        patch.setattr(programs, "QUICK", 0.0)
        network = hooks.Network("tiny", lambda: torch.nn.Linear(3, 2), (4, 3))
        patch.setitem(hooks.NETWORKS, "mlp", network)
        choice = OPTIMIZERS["adamw"]
        phases = phase.measure(phase.SMALL, 0)
        rows = {
            "step": run_case(Case(choice, WORKLOADS["1"], "float32", "cpu"), PATHS, [1], 0),
            "host": host.time_split(choice, TINY, 0),
            "accuracy": accuracy.errors(choice, "float32", steps=2),
            "train": train.measure(choice, 2, "cpu", 0),
            "precision": precision.clock(WORKLOADS["1"], 1),
            "hooks": [*hooks.measure_calls(0), *hooks.measure_training("mlp", 0)],
            "phase": phase.rows_of(phase.SMALL, phases, 1),
            "programs": programs.measure(programs.PROGRAMS["mlp"], 1, quick=True),
            "offload": offload.rows_of(phase.SMALL, phases, ranks=2, threads=1),
            "strides": strides.measure(choice, "gradient transposed", "float32", 0),
            "versions": [versions.measure("9.9", "2.13.0", timed=False, keep=False)],
            "landscapes": [
                *(
                    row
                    for made in (landscapes.follow(1), landscapes.try_rates(2, 1))
                    for row in made[1]
                ),
                landscapes.group_row(DESCENTS["SGD"], 2, 0),
            ],
        }
    for name, values in rows.items():
        record = results.Record(
            results.new_result("x", ["--y"]), folder / f"{name}.json", case=["optimizer"]
        )
        record.add(values)
    return folder


@pytest.mark.parametrize("kind", report.TABLES)
def test_tables_are_made_from_result_files(kind: str, example: Path) -> None:
    name = {"gains": "programs"}.get(kind, kind)
    name = name if (example / f"{name}.json").exists() else "step"
    name = "landscapes" if kind in ("trajectories", "tolerance", "groups") else name
    text = f"before\n<!-- begin table: {kind} {name} -->\noutdated\n<!-- end table -->\nafter\n"
    made = report.update(text, example)
    assert "outdated" not in made and "| --- |" in made and "python -m benchmarks.x --y" in made
    assert made.startswith("before\n") and made.endswith("after\n")
    assert report.update(made, example) == made


@pytest.mark.parametrize("readme", report.READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_readmes_tables_match_the_result_files(readme: Path) -> None:
    if not readme.exists():
        pytest.skip(f"there is no {readme.relative_to(ROOT)}")
    text = readme.read_text()
    assert text.count("<!-- begin table") == len(report._TABLE.findall(text))
    assert report.update(text) == text, "run python -m benchmarks.report"


def test_what_is_slower_has_a_colour_of_its_own() -> None:
    """Also 0.9, and beside bars of several dtypes."""
    figure = pytest.importorskip("matplotlib.figure")
    axis = figure.Figure().subplots()
    ratios = [{"median": ratio, "p10": ratio, "p90": ratio} for ratio in (0.9, 1.1)]
    rows = [our_row("1", ratio=ratio) for ratio in ratios]
    rows[1]["dtype"] = "float64"
    chart._bars(axis, rows)
    colours = {bar.get_facecolor() for bar in axis.patches}
    assert len(colours) == 2 and axis.get_xlabel() == "torch's time / ours"


def test_a_chart_is_drawn(example: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = results.load(example / "step.json")
    slow = {"median": 0.5, "p10": 0.4, "p90": 0.6}
    result["rows"].append(our_row("1", optimizer="sgd", ratio=slow) | {"dtype": "float16"})
    result["rows"][-1]["threads"] = 1
    chart.draw(result, tmp_path / "two.png")
    assert (tmp_path / "two.png").stat().st_size > 10_000
    chart.draw(results.load(example / "step.json"), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def our_row(workload: str, **fields: Any) -> dict[str, Any]:
    return {
        "optimizer": "adamw", "workload": workload, "dtype": "float32", "device": "cpu",
        "threads": 2, "implementation": "fusedopt", "seconds": {}, **fields,
    }  # fmt: skip


def test_the_default_stands_before_the_fastest() -> None:
    ours = our_row("1", ratio={"median": 2.0}) | {"seconds": {"median": 1e-6}}
    default = ours | {"implementation": "for-loop", "ratio": {"median": 0.4}}  # of the fastest
    other = our_row("1", optimizer="sgd", ratio={"median": 3.0}) | {"seconds": {"median": 1e-6}}
    half = ours | {"dtype": "float16", "ratio": {"median": 7.0}}
    table = report.speed_over_default({"rows": [ours, default, other, half]})
    assert "| adamw | 5.00× (2.00×) |" in table and "| sgd | – (3.00×) |" in table
    assert "7.00" not in table


def test_targets_are_compared_with_what_was_measured() -> None:
    rows = [
        our_row("1000x64", ratio={"median": 39.999}, floor_percent=5),
        our_row("resnet50", ratio={"median": 1.1}, floor_percent=96),
        our_row("resnet50-nhwc", over_contiguous={"median": 1.0501}),
        our_row("1", ratio={"median": 9.0}, floor_percent=1) | {"threads": 1},
        our_row("1", ratio={"median": 2.0}, floor_percent=1),
        our_row("") | {"model": "resnet20", "ratio": {"median": 1.2}},
    ]
    found = [v for v in targets.verdicts(rows) if v.measured is not None]
    assert [v.text for v in found] == [
        "**✗ 39.99** (≥ 40)",
        "✓ 2.00 (≥ 2)",
        "✓ 1.10 (≥ 1)",
        "✓ 96 % (≥ 95 %)",
        "**✗ 1.06** (≤ 1.05)",
        "✓ 1.20 (≥ 1.1)",
    ]
    text = targets.table(rows)
    assert "4 met, 2 missed" in text and "medians of 1 run (" in text
    assert "| – (≥ 40) |" in text  # what wasn't measured is shown, too


@pytest.mark.parametrize("layout", strides.LAYOUTS)
def test_layouts_are_what_they_are_called(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strides, "SIDE", 64)
    param, grad = strides.LAYOUTS[layout](lambda *shape: torch.ones(shape))
    assert param.shape == grad.shape and param.numel() == 64 * 64
    assert (param.stride() == grad.stride()) == (layout.startswith(("contiguous", "both")))


def test_every_target_can_be_measured() -> None:
    for target in targets.TARGETS:
        assert target.workload in WORKLOADS or target.workload == "training"
        assert target.dtype in DTYPES
        assert target.bounds.keys() <= set(targets.OPTIMIZERS) <= OPTIMIZERS.keys()


def test_the_parts_of_a_step_are_named(example: Path) -> None:
    ours, fused, *_ = results.load(example / "host.json")["rows"]
    assert {"total", "python", "check", "fill", "kernel"} <= ours.keys()
    assert {"total", "python", "kernel"} <= fused.keys()
    assert all(math.isfinite(ours[part]) for part in host.PARTS)


def test_instructions_are_read_from_callgrinds_report() -> None:
    text = (
        "9,709,005 (100.0%)  PROGRAM TOTALS\n\n"
        "9,247,512 (95.25%)  ???:fusedopt::Plan::step(pybind11::list const&) [/x/_C.so]\n"
        "1,657,482 (17.07%)  ???:fusedopt::look(fusedopt::Reading&)'2 [/x/_C.so]\n"
        "1,416,810 (14.59%)  ???:fusedopt::cpu::run(fusedopt::cpu::Kernel const&) [/x/_C.so]\n"
    )
    parts = instructions.parse(text)
    assert parts == {"total": 9709005, "step": 9247512, "look": 1657482, "kernel": 1416810}


def test_errors_are_small_in_double_and_larger_in_half(example: Path) -> None:
    choice = OPTIMIZERS["adam"]
    double = accuracy.errors(choice, "float64", steps=3)
    half = accuracy.errors(choice, "bfloat16", steps=3)
    assert double[0]["implementation"] == half[0]["implementation"] == "fusedopt"
    assert double[0]["max"] < 1e-12 < half[0]["max"]
