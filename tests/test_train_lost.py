"""Nothing of a user's is lost: folders that aren't a run's, results, and what lies beside them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("tensorboard", reason="the training script needs fusedopt[train]")

from test_train_resume import assert_same_run
from train_runs import SMALL, error_of, no_chart, short_measurement, train  # noqa: F401

from fusedopt import turns
from fusedopt.train import cost, main

COMPARE = ("compare", "--model", "lenet", "--threads", 1, *SMALL, "--epochs", 1)
COMPARE += ("--optimizers", "sgd", "--impl", "fusedopt", "--seeds", 1)


def content_of(folder: Path) -> dict[str, bytes | None]:
    """All that lies in a folder, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def compare(*options: object) -> None:
    main(list(map(str, (*COMPARE, *options))))


def compare_error(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    with pytest.raises(SystemExit) as info:
        compare(*options)
    assert info.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.pt", "metrics.csv", "result.json", "lock", "a.part", "notes.txt",
     "checkpoint.pt.part", "tensorboard/events.out.tfevents.1.host", "sub/notes.txt"],
)  # fmt: skip
def test_a_folder_with_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    before = content_of(tmp_path)
    first = name.split("/")[0]
    says = f"--out: {tmp_path} isn't empty, and holds no run: it has {first}; name another folder"
    assert error_of(capsys, *SMALL, "--out", tmp_path).endswith(says)
    says = says.replace("no run", "no comparison")
    assert compare_error(capsys, "--out", tmp_path).endswith(says)
    assert content_of(tmp_path) == before


def test_a_comparison_and_a_run_do_not_share_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, comparison = tmp_path / "run", tmp_path / "comparison"
    train(*SMALL, "--epochs", 1, "--out", run)
    before = content_of(run)
    line = compare_error(capsys, "--out", run)
    assert line.endswith(f"--out: {run} holds a run; name another folder")
    assert content_of(run) == before
    compare("--out", comparison)
    before = content_of(comparison)
    line = error_of(capsys, *SMALL, "--out", comparison)
    assert line.endswith(f"--out: {comparison} holds a comparison; name another folder")
    assert content_of(comparison) == before
    compare("--out", comparison)  # the same command again


def test_results_without_a_checkpoint_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is the largest file, and may be deleted to save space."""
    train(*SMALL, "--epochs", 1, "--out", tmp_path)
    (tmp_path / "checkpoint.pt").unlink()
    before = content_of(tmp_path)
    assert "isn't empty, and holds no run" in error_of(capsys, *SMALL, "--out", tmp_path)
    assert content_of(tmp_path) == before


def test_a_run_that_never_began_may_begin_again(tmp_path: Path) -> None:
    """Before its first checkpoint there is nothing that could be lost."""
    train(*SMALL, "--epochs", 1, "--out", tmp_path)
    for path in tmp_path.iterdir():
        if path.name not in ("lock", "config.json", "tensorboard"):
            path.unlink()
    (tmp_path / "checkpoint.pt.part").touch()
    train(*SMALL, "--epochs", 1, "--out", tmp_path)
    assert (tmp_path / "checkpoint.pt").exists() and not list(tmp_path.glob("*.part"))


def test_what_lies_beside_a_run_stays(tmp_path: Path) -> None:
    train(*SMALL, "--epochs", 1, "--out", tmp_path)
    mine = [tmp_path / name for name in ("mine.part", "notes.txt", "tensorboard/events.mine")]
    for path in mine:
        path.write_text("mine")
    train("--resume", tmp_path)
    assert [path.read_text() for path in mine] == ["mine"] * 3
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_a_finished_run_resumed_into_another_folder_is_whole(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    train(*SMALL, "--epochs", 2, "--out", a)
    train("--resume", a, "--out", b)
    assert_same_run(a, b)
    assert len(train("--resume", b, "--epochs", 3).rows) == 3


def test_the_result_is_written_before_costs_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And Ctrl-C says which folder is whole."""

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cost, "measure", interrupt)
    line = error_of(capsys, *SMALL, "--epochs", 1, "--out", tmp_path / "run", code=130)
    assert line == (
        f"interrupted; training is done, and {tmp_path / 'run'} has its result, without the"
        " optimizers' cost"
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 <= result["test"]["accuracy"] <= 1 and result["costs"] == {}
    line = error_of(capsys, *SMALL, "--epochs", 1, code=130)
    assert line == "interrupted; training is done; nothing is kept without --out FOLDER"


def test_ctrl_c_while_the_test_set_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fusedopt.train import run

    evaluate, calls = run.evaluate, iter(range(9))

    def interrupt(*arguments: object) -> object:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(run, "evaluate", interrupt)
    line = error_of(capsys, *SMALL, "--epochs", 1, "--out", tmp_path, code=130)
    assert line == (
        "interrupted; training is done; to test its network: python -m fusedopt.train --resume"
        f" {tmp_path}"
    )
    assert (tmp_path / "model.pt").exists()


def test_costs_take_a_share_of_the_runs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cost, "ROUNDS", 10**6)
    monkeypatch.setattr(cost, "SHARE", 0.1)
    ticks = iter(range(10**6))
    clock = SimpleNamespace(perf_counter=lambda: 0.001 * next(ticks))
    monkeypatch.setattr(turns, "time", clock)
    rounds = train(*SMALL, "--epochs", 1).costs["torch"].rounds
    assert rounds < 10**4  # the clock says when to stop
    said = capsys.readouterr().out
    assert "measuring on copies of the model what the optimizer takes with fusedopt and" in said
    assert said.index("test accuracy") < said.index("measuring on copies")


def test_costs_can_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cost, "measure", pytest.fail)
    assert train(*SMALL, "--epochs", 1, "--no-cost", "--out", tmp_path).costs == {}
    assert json.loads((tmp_path / "result.json").read_text())["costs"] == {}
    assert "measuring" not in capsys.readouterr().out
    train("--resume", tmp_path, "--no-cost")


AFTER = """
import os, sys
from fusedopt.train import main
main(sys.argv[1:])
tasks = os.listdir("/proc/self/task")
print("threads:", [open(f"/proc/self/task/{task}/comm").read().strip() for task in tasks])
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds threads in /proc")
def test_the_process_group_has_ended_when_the_script_has() -> None:
    """Its threads, too: a process that exits while they run may abort."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    options = ("--model", "lenet", "--threads", 1, *SMALL, "--epochs", 1, "--strategy", "zero")
    done = subprocess.run(
        [sys.executable, "-c", AFTER, *map(str, options)],
        capture_output=True, text=True, timeout=300, env={**os.environ, **launched},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "threads:" in done.stdout and "gloo" not in done.stdout
