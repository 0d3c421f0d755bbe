"""Whole programs: each runs with all implementations, and what is made of their result file."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fusedopt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import report, results  # noqa: E402
from benchmarks.programs import chart, language, measure, reinforced, table  # noqa: E402
from benchmarks.programs.__main__ import main  # noqa: E402
from benchmarks.programs.program import (  # noqa: E402
    CLASS,
    FUSED,
    TORCH,
    WHOLE,
    Phase,
    Program,
    Run,
    Side,
    Stopwatch,
    fastest_path,
)

SIDES = (TORCH, FUSED, CLASS, WHOLE)
SB3 = ("stable_baselines3", "gymnasium")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two steps of everything."""
    monkeypatch.setattr(measure, "QUICK", 0.0)
    monkeypatch.setattr(language, "EVALUATED", 4)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_programs_run_and_learn_the_same(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, png = tmp_path / "new" / "programs.json", tmp_path / "chart.png"
    arguments = ["--quick", "--threads", "1", "--json", str(path)]
    main([*arguments, "--program", "mlp", "lstm"])
    main([*arguments, "--program", "vit", "--chart", str(png)])
    printed = capsys.readouterr().out
    assert "small vision transformer" in printed and f"Drew {png}" in printed
    result = results.load(path)
    assert result["benchmark"] == "programs" and len(result["parts"]) == 2
    rows = result["rows"]
    assert [row["implementation"] for row in rows] == [*SIDES] * 3
    for row in rows:
        assert row["quick"] and row["threads"] == 1
        assert 0 < row["share"] < 1 and row["seconds"]["median"] > 0
        same = [other for other in rows if other["program"] == row["program"]]
        assert row["result"]["seeds"] == 1
        assert row["result"]["median"] == near(same[0]["result"]["median"], row["program"])
        assert ("ratio" in row) == (row["implementation"] != TORCH)
        assert ("fused_ratio" in row) == (row["implementation"] in (CLASS, WHOLE))
    assert png.read_bytes().startswith(b"\x89PNG")


def near(value: float, program: str) -> Any:
    """The same but for rounding, which may move an example from one class to another."""
    counts = measure.PROGRAMS[program].result.startswith("accuracy")
    return pytest.approx(value, rel=1e-4, abs=1.0 if counts else 0.0)


@pytest.mark.parametrize("name", ["gp", "graph"])
def test_programs_of_other_libraries(name: str) -> None:
    program = measure.PROGRAMS[name]
    for library in program.needs:
        pytest.importorskip(library)
    rows = measure.measure(program, 2, quick=True)
    assert [row["implementation"] for row in rows] == [TORCH, FUSED, CLASS]
    assert all(row["result"]["seeds"] == 2 and row["libraries"] for row in rows)
    medians = [row["result"]["median"] for row in rows]
    assert medians == [near(medians[0], name)] * 3


def test_the_librarys_functions_are_replaced_while_it_learns() -> None:
    """A2C clips by ours, and afterwards torch's is back."""
    for library in SB3:
        pytest.importorskip(library)
    program, torchs = measure.PROGRAMS["a2c"], nn.utils.clip_grad_norm_
    for name in (TORCH, WHOLE):
        stopwatch = Stopwatch()
        run = program.make(Side(name, stopwatch), 0, 0.0)
        run.train()
        assert nn.utils.clip_grad_norm_ is torchs
        assert 0 < stopwatch.seconds < run.parts["train()"].seconds
        assert run.result() >= 8  # as soon as CartPole falls


@pytest.mark.parametrize("tau", [1.0, 0.005])
def test_the_targets_average_is_the_librarys(tau: float) -> None:
    utils = pytest.importorskip("stable_baselines3.common.utils")
    start, values = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    averages = [nn.Parameter(start.clone()) for _ in range(2)]
    updates = (utils.polyak_update, reinforced.polyak_update)
    for update, average in zip(updates, averages, strict=True):
        with torch.no_grad():
            update(iter([nn.Parameter(values)]), iter([average]), tau)
            update([], [], tau)
    torch.testing.assert_close(averages[1].detach(), averages[0].detach(), rtol=1e-6, atol=0)


def test_an_absent_library_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in ("gpytorch", *SB3) else found(name, *rest),
    )
    path = tmp_path / "programs.json"
    main(["--quick", "--program", "gp", "ppo", "--json", str(path)])
    printed = capsys.readouterr().out
    assert "gp: needs gpytorch: not installed" in printed
    assert "needs stable_baselines3 and gymnasium: not installed" in printed
    gp, ppo = results.load(path)["rows"]
    assert gp["status"] == "needs gpytorch: not installed" and ppo["program"] == "ppo"
    made = report.render("programs", "programs", tmp_path)
    assert "| Gaussian process of GPyTorch, quick | needs gpytorch: not installed |" in made
    assert "With" not in made
    with pytest.raises(SystemExit, match="no program was measured"):
        chart.draw(results.load(path), tmp_path / "chart.png")


def test_a_library_that_cannot_be_imported_is_named() -> None:
    def make(side: Side, seed: int, scale: float) -> Run:
        raise ImportError("No module named 'pandas'")

    program = Program("x", "X", "Adam", make, "loss")
    (row,) = measure.measure(program, 1, quick=True)
    assert row["status"] == "ImportError: No module named 'pandas'" and "seconds" not in row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--program", "chess"], "invalid choice: 'chess'"),
        (["--repeats", "0"], "0 is not at least 1"),
        (["--threads", "0"], "0 is not at least 1"),
        (["--json", "/"], "--json: / is a folder"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_torchs_fastest_path_is_its_fused_one_if_there_is_one() -> None:
    assert [fastest_path(name) for name in ("Adam", "AdamW", "SGD")] == ["fused"] * 3
    assert fastest_path("RMSprop") == "foreach"
    assert Side(FUSED).options("RMSprop") == {"foreach": True}
    assert Side(TORCH).options("Adam") == Side(WHOLE).options("Adam") == {}


@pytest.mark.parametrize("name", SIDES)
def test_a_phase_is_what_it_says(name: str) -> None:
    """Clipping, then the step, then the average of what it made, and gradients are gone."""
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    phase = Phase(Side(name), "SGD", model, limit=1.0, decay=0.5, lr=1.0)
    assert type(phase.optimizer).__module__.startswith(
        "fusedopt" if name in (CLASS, WHOLE) else "torch.optim"
    )
    assert getattr(phase.optimizer, "max_grad_norm", None) == (1.0 if name == WHOLE else None)
    for _ in range(2):
        model.weight.grad = torch.tensor([[30.0, 40.0]])
        phase.end_step()
        assert model.weight.grad is None
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[-1.2, -1.6]]))
    average = next(phase.trained.parameters()).detach()
    torch.testing.assert_close(average, torch.tensor([[-0.9, -1.2]]))


def test_what_is_timed_is_the_phase() -> None:
    model = nn.Linear(2, 1)
    stopwatch = Stopwatch()
    optimizer = fusedopt.Adam(model.parameters())
    Side(CLASS, stopwatch).watch(optimizer)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert [row.kernel for row in fusedopt.explain(optimizer).rows] == ["adam"]
    taken = stopwatch.seconds
    optimizer.zero_grad()
    assert stopwatch.seconds > taken > 0 and model.weight.grad is None
    assert Side(CLASS).timed(print) is print


def made_up(program: str, share: float, ratios: dict[str, float], **more: Any) -> list[results.Row]:
    """Rows as `measure` makes them."""

    def spread(value: float) -> dict[str, float]:
        return {"median": value, "p10": 0.95 * value, "p90": 1.05 * value}

    rows = []
    for name in SIDES if len(ratios) == 3 else SIDES[:3]:
        row = {
            "program": program, "threads": 2, "quick": False, "implementation": name,
            "path": "fused" * (name == FUSED), "libraries": "lib 1.0", "share": share,
            "seconds": spread(2 / ratios.get(name, 1.0)),
            "result": {"median": 0.5, "least": 0.25, "most": 0.75, "seeds": 3},
        }  # fmt: skip
        if name != TORCH:
            row["ratio"] = spread(ratios[name])
        if name in (CLASS, WHOLE):
            row["fused_ratio"] = spread(ratios[name] / ratios[FUSED])
        rows.append({**row, **more})
    return rows


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with a result file of seven programs, all but one of which gain something."""
    rows = []
    for place, name in enumerate(("resnet50", "resnet20", "gpt", "graph", "gp", "mlp", "dqn")):
        ratio = 0.9 + place / 10
        ratios = {FUSED: 1.05, CLASS: ratio}
        if measure.PROGRAMS[name].whole:
            ratios[WHOLE] = ratio + 0.2
        rows += made_up(name, 0.01 * 2**place, ratios)
    record = results.Record(
        results.new_result("programs", []), tmp_path / "programs-cpu.json", measure.CASE
    )
    record.add(rows)
    return tmp_path


def test_the_readmes_five_are_not_chosen_by_hand(written: Path) -> None:
    made = report.render("gains", "programs-cpu", written)
    lines = [line for line in made.splitlines() if line.startswith("| ")][2:]
    assert len(lines) == 5
    assert lines[0].endswith("| 1.0 % | 0.90× | – | 0.86× |") and "ResNet-50" in lines[0]
    assert lines[-1].endswith("| 64 % | 1.50× | 1.70× | 1.62× |") and "DQN" in lines[-1]
    assert f"({report.PROGRAMS_CHART})" in made and "`python -m benchmarks.programs`" in made
    assert report.render("gains", "none", written) == "(No `results/none.json` yet.)\n"


def test_the_table_names_targets_and_what_is_slower(written: Path) -> None:
    made = report.render("programs", "programs-cpu", written)
    assert "| DQN of stable-baselines3, CartPole (Adam) | 2.00 s |" in made
    assert "| 1.50× (1.43–1.57) | 1.70× (1.61–1.78) |" in made
    assert "reward 0.5 (0.25 to 0.75) | 0.5 (0.25 to 0.75) |" in made
    assert "dqn: ✓ 1.70 (≥ 1.7)" in made and "ppo, train(): – (≥ 1.8)" in made
    assert "beyond the noise: resnet50. With lib 1.0." in made


def test_parts_have_lines_of_their_own() -> None:
    part = {"seconds": {"median": 1.0}, "ratio": {"median": 2.0, "p10": 2.0, "p90": 2.0}}
    part["fused_ratio"] = part["ratio"]
    rows = made_up("ppo", 0.3, {FUSED: 1.0, CLASS: 1.2, WHOLE: 1.4}, parts={"train()": part})
    _, whole, own = table.table_rows(rows)
    assert whole[0].startswith("PPO") and own[0] == "… of that train()"
    assert own[1:5] == ["1.00 s"] * 4 and len(own) == len(whole) == len(table.HEAD)
    assert "ppo, train(): ✓ 2.00 (≥ 1.8), at most 2.50;" in table.goals(rows)


def test_a_chart_is_drawn(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    result = results.load(written / "programs-cpu.json")
    result["rows"] += made_up("a2c", 0.0, {FUSED: 1.0, CLASS: 1.0, WHOLE: 1.0})  # no step at all
    names: list[str] = []
    draw: Callable[..., None] = chart._name
    monkeypatch.setattr(
        chart, "_name", lambda axis, *rest: (draw(axis, *rest), names.extend(texts(axis)))
    )
    chart.draw(result, written / "new" / "chart.png")
    assert (written / "new" / "chart.png").stat().st_size > 10_000
    assert sorted(names) == sorted({row["program"] for row in result["rows"]})


def texts(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.texts]
