"""What the table of versions says of a row, whatever became of it."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import results, versions  # noqa: E402

REPORT = """<testsuites><testsuite>
<testcase classname="test_a" name="good"/>
<testcase classname="test_a" name="bad"><failure/></testcase>
<testcase classname="test_b" name="broken"><error/></testcase>
<testcase classname="test_b" name="left out"><skipped/></testcase>
</testsuite></testsuites>"""


def test_a_report_is_counted() -> None:
    counted = versions.count(REPORT)
    assert counted == {
        "passed": 1,
        "failed": 2,
        "skipped": 1,
        "failures": ["test_a::bad", "test_b::broken"],
    }


def test_the_tests_are_there() -> None:
    missing = [n for n in versions.TESTS if not (ROOT / "tests" / f"test_{n}.py").is_file()]
    assert missing == []


def test_what_cannot_be_had_is_a_row_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(versions, "PLACE", tmp_path / "versions")
    made = tmp_path / "versions.json"
    with pytest.raises(SystemExit) as ended:
        versions.main(["--rows", "9.9:2.14.1", "--no-times", "--json", str(made)])
    assert ended.value.code == 1
    assert "no Python 9.9 here" in capsys.readouterr().out
    (row,) = results.load(made)["rows"]
    assert row["status"] == "no Python 9.9 here"
    head, line = versions.table_rows([row])
    assert len(head) == len(line) and line[:3] == ["9.9", "2.14.1", "no Python 9.9 here"]


def test_a_row_with_and_without_times() -> None:
    row = {
        **{"python": "3.12", "torch": "2.14.1", "status": "", "kernel": "adamw", "reason": ""},
        **{"python_found": "3.12.1", "torch_found": "2.14.1+cu130"},
        **{"passed": 7, "failed": 0, "skipped": 1},
    }
    line = versions.table_rows([row])[1]
    assert line == ["3.12.1", "2.14.1+cu130", "yes", "7", "0", "1", "not measured", "not measured"]
    row["seconds"] = {
        "fusedopt": {"median": 9e-5, "p10": 2e-5},
        "fused": {"median": 9e-4, "p10": 4e-4},
    }
    assert versions.table_rows([row])[1][-2:] == ["20.0 µs", "400 µs"]
