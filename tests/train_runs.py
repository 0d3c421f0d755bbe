"""Running the training script in tests, and looking at what it left."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fusedopt.train import cost, folder, main, run

TIMES = {"seconds", "images_per_second", "optimizer_seconds", "optimizer_share"}
# 50 images: four batches. Runs that get more epochs later have the same steps before.
SMALL = ("--per-class", 5, "--batch-size", 16, "--scheduler", "exponential")


@pytest.fixture(autouse=True)
def short_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """For files in which times matter to no test: importing it is enough."""
    monkeypatch.setattr(cost, "ROUNDS", 1)
    monkeypatch.setattr(cost, "SHARE", 1e9)  # however short the run is


@pytest.fixture(autouse=True)
def no_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    """For files in which a run's chart matters to no test, or to one that puts it back."""
    monkeypatch.setattr(folder, "draw_run", lambda rows, file, *_: file.write(b"PNG"))


def train(*options: object) -> run.Result:
    """A run of LeNet, unless the options name another model or run."""
    model = () if "--resume" in options else ("--model", "lenet")
    return main([*model, "--threads", str(torch.get_num_threads()), *map(str, options)])


def error_of(capsys: pytest.CaptureFixture[str], *options: object, code: int = 2) -> str:
    """The last line that the script leaves on stderr when it refuses these options."""
    with pytest.raises(SystemExit) as exit_info:
        train(*options)
    assert exit_info.value.code == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in lines
    return lines[-1]


def read(folder: Path) -> dict[str, Any]:
    """A run's checkpoint, without what no two runs have in common: times, and where it lies."""
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    for name in TIMES & set(content):
        del content[name]
    for row in content["rows"]:
        for name in TIMES:
            del row[name]
    for name in ("out", "resume", "impl", "threads"):
        del content["options"][name]
    return content


def metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without times."""
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Asserts that two checkpoints hold the same values, tensors bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    else:
        assert a == b, where
