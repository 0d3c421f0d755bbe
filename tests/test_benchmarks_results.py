"""The benchmarks' result files: extended, replaced, or refused."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import results, step  # noqa: E402
from benchmarks.programs import __main__ as programs  # noqa: E402


def small_result(path: Path, rows: list[dict[str, Any]], command: str = "") -> results.Record:
    record = results.Record(results.new_result("x", [command]), path, case=["name"])
    record.add(rows)
    return record


def test_a_result_file_is_extended_and_the_same_cases_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    first = [{"name": "a", "who": i} for i in range(2)] + [{"name": "b", "who": 0}]
    small_result(path, first, "--first")
    small_result(path, [{"name": "a", "who": 9}], "two words").add([{"name": "c", "who": 0}])
    result = results.load(path)
    assert [(row["name"], row["who"], row["part"]) for row in result["rows"]] == [
        ("b", 0, 0), ("a", 9, 1), ("c", 0, 1),
    ]  # fmt: skip
    assert [part["command"].split(" ", 3)[3] for part in result["parts"]] == [
        "--first", "'two words'",
    ]  # fmt: skip
    assert results.provenance(result).count("`python -m benchmarks.x") == 2
    small_result(path, [{"name": "b", "who": 1}])
    assert len(results.load(path)["parts"]) == 2  # of the first part nothing is left
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("benchmark", "y", "benchmark y, not x"),
        ("machine", {"cpu": "another"}, "cpu another, not"),
        ("versions", {"torch": "1.0"}, "torch 1.0, not"),
    ],
)
def test_what_was_measured_elsewhere_is_not_extended(
    key: str, value: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    small_result(path, [{"name": "a"}])
    results.save({**results.load(path), key: value}, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"can't extend .*{message}"):
        small_result(path, [{"name": "b"}])
    assert path.read_bytes() == before
    result = results.new_result("x", [])
    if key == "benchmark":
        with pytest.raises(ValueError, match="can't extend"):
            results.Record(result, path, case=["name"], afresh=True)
        assert path.read_bytes() == before
        return
    results.Record(result, path, case=["name"], afresh=True).add([{"name": "c"}])
    assert [row["name"] for row in results.load(path)["rows"]] == ["c"]
    assert path.with_name("result.json.old").read_bytes() == before
    results.Record(result, path, case=["name"], afresh=True).add([{"name": "d"}])
    assert [row["name"] for row in results.load(path)["rows"]] == ["c", "d"]
    assert path.with_name("result.json.old").read_bytes() == before


def test_make_bench_begins_afresh_after_a_rebuild() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\nbench: ")[2].partition("\n\n")[0]
    assert "--json build/bench.json --afresh" in recipe
    assert step.make_parser().parse_args(["--json", "x", "--afresh"]).afresh


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that root can't write to")
def test_a_result_that_cannot_be_written_is_said_before_measuring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step, "measure_all", pytest.fail)
    with pytest.raises(SystemExit, match="2"):
        step.main(["--workload", "1", "--json", "/proc/result.json"])
    assert "error: --json: " in capsys.readouterr().err.splitlines()[-1]


def test_a_result_that_cannot_be_written_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = results.Record(results.new_result("x", []), tmp_path / "a.json", case=["name"])

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SystemExit, match="--json: can't write .*a.json: .*No space left"):
        record.add([{"name": "a"}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rows": []}'])
def test_a_file_that_is_no_result_file_is_left_alone(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        step.main(["--workload", "1", "--json", str(path)])
    assert "is no result file" in capsys.readouterr().err
    assert path.read_text() == text


@pytest.mark.parametrize("module", [step, programs])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chart", "."], "is no name of a PNG file"),
        (["--chart", "chart.pdf"], "is no name of a PNG file"),
        (["--chart", "file/chart.png"], "can't write"),
        (["--threads", "1000000"], "are too many"),
    ],
)
def test_what_would_fail_after_the_measurement_is_refused_before(
    module: Any,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "recording", lambda *_: pytest.fail("it would have measured"))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        module.main(arguments)
    assert message in capsys.readouterr().err


def test_a_chart_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    monkeypatch.setattr(results, "recording", lambda *_: pytest.fail("it would have measured"))
    with pytest.raises(SystemExit, match="2"):
        step.main(["--chart", "chart.png"])
    assert "argument --chart: needs matplotlib" in capsys.readouterr().err
