"""The training script's other commands, `compare` and `predict`, and what a run's folder holds."""

from __future__ import annotations

import csv
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cases import CLASS_CASES, with_torch

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("tensorboard", reason="the training script needs fusedopt[train]")
pytest.importorskip("PIL", reason="the training script needs fusedopt[train]")

from PIL import Image
from train_runs import (  # noqa: F401
    SMALL,
    error_of,
    metrics,
    no_chart,
    read,
    short_measurement,
    train,
)

from fusedopt.train import charts, cli, compare, folder, main, run, world
from fusedopt.train.optimizers import DEFAULTS


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def command(*arguments: object) -> None:
    main(list(map(str, arguments)))


def fail(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    with pytest.raises(SystemExit) as exit_info:
        command(*arguments)
    assert exit_info.value.code == code
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "draw_run", charts.draw_run)
    result = train("--epochs", 2, *SMALL, "--out", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["options"]["model"] == "lenet" and config["options"]["lr"] == 3e-3
    assert config["torch"] == torch.__version__
    rows = rows_of(tmp_path / "metrics.csv")
    assert [{k: float(v) for k, v in row.items()} for row in rows] == result.rows
    assert json.loads((tmp_path / "result.json").read_text())["test"] == result.test._asdict()
    with Image.open(tmp_path / "curves.png") as chart:
        assert chart.format == "PNG" and chart.width > 1000
        assert len(set(chart.convert("L").get_flattened_data())) > 10  # something is drawn
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    names = {f"{a}/{b}" for a in ("loss", "accuracy") for b in ("train", "validation")}
    assert set(events.Tags()["scalars"]) == names | {"lr", "images_per_second", "optimizer_share"}
    assert [event.step for event in events.Scalars("lr")] == [1, 2]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(28, "No space left on device"), 2, "error: cannot print: No space left on device"),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
    ],
)
def test_an_output_that_takes_no_more(
    error: OSError,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It is no fault of the data, whose description is the first that is printed."""

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("builtins.print", refuse)
    monkeypatch.setattr(cli.os, "dup2", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        command(*SMALL)
    assert ended.value.code == code
    assert capfd.readouterr().err.strip().endswith(message)


def test_the_header_says_what_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--per-class", 5, "--batch-size", 16, "--no-cost", "--epochs", 2)
    train(*options, "--accumulate", 2, "--warmup", 1, "--augment", "crop,flip")
    lines = capsys.readouterr().out.splitlines()
    assert lines[3:5] == [
        "digits: 10 classes, images of 16x16 pixels in 1 channel; 50 training, 180 validation, 360"
        " test images",
        "2 epochs of 2 steps, 2 batches of 16 images each; warm-up of 1 epoch, then cosine;"
        " augmentation: crop,flip",
    ]
    train(*options, "--scheduler", "step", "--scheduler-arg", "step_size=3")
    lines = capsys.readouterr().out.splitlines()
    assert lines[4] == (
        "2 epochs of 4 steps, a batch of 16 images each; scheduler step (step_size=3);"
        " augmentation: crop"
    )


def test_figures_that_json_does_not_have(tmp_path: Path) -> None:
    folder.write_json(tmp_path / "a.json", {"loss": math.nan, "seconds": 1.5, "to": [math.inf]})
    content = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert content == {"loss": None, "seconds": 1.5, "to": [None]}


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All, ours and torch's, with the same weights and batches, and no look at the test."""
    options = ("--model", "lenet", *SMALL, "--epochs", 1, "--threads", 1, "--seeds", 1)
    with pytest.MonkeyPatch.context() as patch:
        evaluated = []
        evaluate = run.evaluate
        patch.setattr(run, "evaluate", lambda *a: evaluated.append(len(a[1])) or evaluate(*a))
        command("compare", *options, "--out", tmp_path)
    both = [case.name.lower() for case in with_torch(CLASS_CASES)]
    compared = [
        (name, impl)
        for name in DEFAULTS
        for impl in ("fusedopt", "torch")
        if impl == "fusedopt" or name in both
    ]
    assert evaluated == [180] * len(compared)
    lines = rows_of(tmp_path / "compare.csv")
    assert [(line["optimizer"], line["impl"]) for line in lines] == compared
    every = rows_of(tmp_path / "metrics.csv")
    assert len({row["train_loss"] for row in every}) >= len(DEFAULTS)
    rows = [row for row in every if row["optimizer"] in both]
    for ours, torchs in zip(rows[::2], rows[1::2], strict=True):
        assert float(ours["train_loss"]) == pytest.approx(float(torchs["train_loss"]), rel=1e-3)
        assert 0 < float(ours["optimizer_share"]) < 1
    assert len({row["train_loss"] for row in rows[::2]}) == len(both)
    with Image.open(tmp_path / "compare.png") as chart:
        assert chart.format == "PNG"
    printed = capsys.readouterr().out
    assert "in the optimizer" in printed and printed.count("adadelta ") == 2


def test_compare_precisions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights in bfloat16 side by side with float32; torch has some of the ways to store them."""
    modes = ["fp32", "bf16-true", "bf16-true+stochastic-rounding", "bf16-true+master-weights"]
    options = ("--model", "lenet", *SMALL, "--epochs", 1, "--threads", 1, "--optimizers", "adamw")
    options += ("--seeds", 1)
    command("compare", *options, "--precision", ",".join(modes), "--out", tmp_path)
    lines = rows_of(tmp_path / "compare.csv")
    assert [(line["optimizer"], line["impl"]) for line in lines] == [
        *((f"adamw {mode}", "fusedopt") for mode in modes),
        *((f"adamw {mode}", "torch") for mode in modes[:2]),
    ]
    assert len({row["train_loss"] for row in rows_of(tmp_path / "metrics.csv")[:4]}) == 4
    assert "bf16-true+master-weights is left out with torch" in capsys.readouterr().out
    for mode in modes:
        config = json.loads((tmp_path / f"adamw-fusedopt-{mode}-seed0" / "config.json").read_text())
        chosen = config.get("options", config)
        assert chosen["precision"] == mode.partition("+")[0]
        assert bool(chosen["master_weights"]) == ("master" in mode)


def test_compare_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("compare", "--model", "lenet", *SMALL, "--threads", 1, "--out", tmp_path)
    options += ("--optimizers", "sgd,adam", "--impl", "fusedopt", "--momentum", 0.5)
    first = tmp_path / "sgd-fusedopt-seed0"
    command(*options, "--epochs", 1, "--seeds", 1)
    assert read(first)["options"]["momentum"] == 0.5
    command(*options, "--epochs", 2, "--seeds", 2)
    folders = [f"{name}-fusedopt-seed{i}" for name in ("sgd", "adam") for i in range(2)]
    assert [len(metrics(tmp_path / name)) for name in folders] == [2] * 4
    line = fail(capsys, *options, "--epochs", 2, "--lr", 0.5)
    assert f"error: --out: {first} was trained with --lr 0.05" in line
    line = fail(capsys, *options, "--epochs", 1)
    assert f"error: --out: {first} has done 2 epochs" in line


def test_compare_over_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mean and standard deviation, of runs that a seed alone gives as well."""
    drawn: list[tuple[object, ...]] = []
    monkeypatch.setattr(compare, "draw_comparison", lambda *given: drawn.append(given))
    options = ("--model", "lenet", *SMALL, "--epochs", 2, "--threads", 1)
    several = ("--optimizers", "sgd,adam,lion", "--impl", "fusedopt", "--lr", "sgd=0.2,adam=0.001")
    command("compare", *options, *several, "--seed", 4, "--seeds", 2, "--out", tmp_path / "out")
    sgd, adam, lion = rows_of(tmp_path / "out" / "compare.csv")
    alone = [train(*options, "--optimizer", "sgd", "--lr", 0.2, "--seed", s) for s in (4, 5)]
    losses = [run.rows[-1]["train_loss"] for run in alone]
    mean, spread = statistics.mean(losses), statistics.stdev(losses)
    assert sgd["seeds"] == "2" and sgd["training loss"] == f"{mean:.4f} ± {spread:.4f}"
    best = [max(row["validation_accuracy"] for row in run.rows) for run in alone]
    text = f"{statistics.mean(best):.1%} ± {statistics.stdev(best):.1%}"
    assert sgd["best accuracy"] == text
    every = rows_of(tmp_path / "out" / "metrics.csv")
    assert [(row["optimizer"], row["seed"], row["epoch"]) for row in every] == [
        (name, seed, epoch)
        for name in ("sgd", "adam", "lion")
        for seed in ("4", "5")
        for epoch in ("1", "2")
    ]
    lrs = [read(tmp_path / "out" / f"{name}-fusedopt-seed5")["options"]["lr"]
           for name in ("sgd", "adam", "lion")]  # fmt: skip
    assert lrs == [0.2, 0.001, 1e-3]
    assert "mean ± standard deviation over the seeds 4 and 5" in capsys.readouterr().out
    (rows, _, _, ranges, title), key = drawn[0], ("sgd", "fusedopt")
    assert title == "lenet on digits, seeds 4, 5"
    assert [row["train_loss"] for row in rows[key]][-1] == pytest.approx(mean)
    assert [row["train_loss"] for row in ranges[key][0]][-1] == min(losses)
    assert [row["train_loss"] for row in ranges[key][1]][-1] == max(losses)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizers", "sgd,lamb"], "argument --optimizers: 'lamb' is not among all, sgd"),
        (["--impl", "apex"], "argument --impl: 'apex' is not among all, fusedopt, torch"),
        (["--momentum", "0.9", "--optimizers", "adam"], "--momentum: none of these optimizers"),
        (["--resume", "x"], "unrecognized arguments: --resume x"),
        (["--seeds", "0"], "argument --seeds: must be a whole number, at least 1, not 0"),
        (["--lr", "sgd=x"], "argument --lr: 'x' is not a number"),
        (["--lr", "lamb=1"], "argument --lr: 'lamb' is not among sgd, adagrad"),
        (
            ["--lr", "sgd=1", "--optimizers", "adam"],
            "--lr: sgd is not among the optimizers that are compared",
        ),
        (["--seed", "4294967295"], "--seeds: there is no seed above 4294967295"),
        (["--scheduler", "step"], "--scheduler step: StepLR missing 1 required"),
    ],
)
def test_bad_comparisons_get_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    line = fail(capsys, "compare", *options, "--out", tmp_path / "out")
    assert f"error: {message}" in line
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_image_in_training_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(20):
            picture = Image.new("RGB", (20, 20), (10 * i, 0, 255 * (label == "cat")))
            picture.save(tmp_path / "data" / label / f"{i}.png")
    options = ("--data", f"folder:{tmp_path / 'data'}", "--image-size", 16, "--epochs", 1)
    assert train(*options, "--lr", 0.01).rows[0]["step"] == 1
    splits = run.load_splits

    def damage_later(options: object) -> object:
        loaded = splits(options)
        damaged = [tmp_path / "1.png", *loaded.train.paths[1:]]
        damaged[0].touch()
        return replace(loaded, train=replace(loaded.train, paths=tuple(map(str, damaged))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "load_splits", damage_later)
        line = error_of(capsys, *options, "--workers", 1, code=1)
    assert f"--data folder:{tmp_path / 'data'}: {tmp_path / '1.png'} is" in line
    assert line.count("DataError") == 0 and "damaged, or no image" in line

    # Of several processes the one that reads it names it: the first one doesn't know.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "load_splits", damage_later)
        patch.setattr(cli, "world", SimpleNamespace(**{**vars(world), "rank": lambda: 1}))
        assert "damaged, or no image" in error_of(capsys, *options, code=1)
