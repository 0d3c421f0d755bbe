"""`--targets`: what the targets compare is measured, once, and goes on where it was stopped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
pytest.importorskip("matplotlib")

from benchmarks import step, targeted, targets  # noqa: E402


def row(workload: str, dtype: str, optimizer: str, **more: Any) -> dict[str, Any]:
    case = {"workload": workload, "dtype": dtype, "optimizer": optimizer}
    measured = {"device": "cpu", "threads": 2, "implementation": "fusedopt", "seconds": {}}
    return {**case, **measured, "runs": 5, **more}


def test_every_target_is_measured_once() -> None:
    cases = [case for case, _ in targeted.wanted([], 5)]
    asked = {
        (v.target.workload, v.target.dtype, v.optimizer)
        for v in targets.verdicts([])
        if v.target.workload != "training"
    }
    assert len(cases) == len(set(cases))
    assert set(cases) == asked


def test_what_the_file_has_is_not_measured_again() -> None:
    every = [case for case, _ in targeted.wanted([], 5)]
    rows = [row(*every[0]), row(*every[1], runs=4)]
    assert [case for case, _ in targeted.wanted(rows, 5)] == every[1:]


def test_all_that_a_ratio_is_to_is_measured() -> None:
    names = dict(targeted.wanted([], 5))
    assert names["gpt2", "float32", "adamw"] == ["fusedopt", "fused"]
    assert names["gpt2", "float32", "adadelta"] == ["fusedopt", "fused", "foreach", "for-loop"]
    assert names["1000x64", "float32", "adamw"] == ["fusedopt", "fused", "foreach", "for-loop"]
    assert names["resnet50-nhwc", "float32", "adamw"] == ["fusedopt"]


def test_each_case_is_run_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after some cases; the same command goes on, and stands in the file once."""
    path, ran = tmp_path / "step.json", []

    def repeat(record: Any, module: str, arguments: list[str], runs: int, key: Any) -> None:
        if len(ran) == 2:
            ran.append("stopped")
            raise KeyboardInterrupt
        options = step.make_parser().parse_args(arguments)
        ran.append(options)
        (workload,), (dtype,) = options.workload, options.dtype
        record.replace([row(workload, dtype, name, runs=runs) for name in options.optimizer])

    monkeypatch.setattr(targeted.runs, "repeat", repeat)
    command = ["--targets", "--runs", "5", "--json", str(path)]
    with pytest.raises(SystemExit) as stopped:
        step.main(command)
    assert stopped.value.code == 130
    before = len(targeted.results.load(path)["rows"])
    assert before == sum(len(options.optimizer) for options in ran[:2])
    step.main(command)
    result = targeted.results.load(path)
    assert len(result["rows"]) == len(list(targeted.wanted([], 5)))
    assert targeted.results.provenance(result).count("--targets") == 1


@pytest.mark.parametrize("more", [[], ["--json", "x.json", "--device", "cuda"]])
def test_what_the_option_needs(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        step.main(["--targets", *more])
    error = capsys.readouterr().err
    assert "--json" in error or "no CUDA device" in error
