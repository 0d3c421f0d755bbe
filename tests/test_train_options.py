"""The optimizers' options on the command line, and defaults that train each model."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("tensorboard", reason="the training script needs fusedopt[train]")

from train_runs import SMALL, error_of, no_chart, short_measurement, train  # noqa: F401

import fusedopt
from fusedopt import _C
from fusedopt.train import main
from fusedopt.train.cli import make_parser, parse
from fusedopt.train.loop import make_optimizer
from fusedopt.train.models import MODELS
from fusedopt.train.optimizers import CLASSES, DEFAULTS, OPTIONS, learning_rate
from fusedopt.train.options import Options


def options_of(*given: object) -> Options:
    return parse(make_parser(), list(map(str, given)))[0]


# Of five classes a fifth is chance. Images of 8 pixels take the least time.
FEW = ("--classes", "0-4", "--per-class", 40, "--batch-size", 20, "--augment", "none", "--no-cost")
EPOCHS = {"lenet": 5, "alexnet": 5, "vgg11": 4, "vgg16": 4, "resnet50": 4}


@pytest.mark.parametrize("model", MODELS)
def test_the_defaults_train_each_model(model: str) -> None:
    size, epochs = 16 if model == "lenet" else 8, EPOCHS.get(model, 3)
    result = train("--model", model, *FEW, "--image-size", size, "--epochs", epochs)
    assert result.rows[-1]["validation_accuracy"] > 0.5, result.rows


@pytest.mark.parametrize("optimizer", CLASSES)
def test_the_defaults_train_with_each_optimizer(optimizer: str) -> None:
    result = train(*FEW, "--optimizer", optimizer, "--epochs", 8)
    assert result.rows[-1]["validation_accuracy"] > 0.5, result.rows


def test_learning_rates_are_those_of_model_and_optimizer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert options_of("--model", "resnet20").lr == learning_rate("resnet20", "adamw") == 3e-3
    assert options_of("--model", "alexnet").lr == 3e-4
    assert options_of("--model", "torchvision:vgg16_bn", "--optimizer", "sgd").lr == (
        learning_rate("vgg16", "sgd")
    )
    assert options_of("--model", "alexnet", "--lr", 1).lr == 1
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    table = capsys.readouterr().out.partition("learning rates")[2]
    for optimizer in DEFAULTS:
        (line,) = [line for line in table.splitlines() if line.split()[:1] == [optimizer]]
        assert line.split()[1:] == [
            f"{learning_rate(model, optimizer):g}" for model in ("resnet20", "alexnet")
        ]


def test_every_option_of_every_optimizer_has_a_flag() -> None:
    """Which reaches its constructor; flags and ranges come from the one description."""
    for optimizer, name in CLASSES.items():
        known = set(_C.optimizers()[name]["options"]) & set(
            inspect.signature(getattr(fusedopt, name)).parameters
        )
        assert known - {"lr"} <= set(OPTIONS[optimizer])
        for option, default in OPTIONS[optimizer].items():
            flag = f"--{option.replace('_', '-')}"
            several = (0.25, 0.5, 0.75)[: len(default)] if isinstance(default, tuple) else ()
            value = [",".join(map(str, several)) or "0.25"] if default is not False else []
            more = ["--dampening", "0"] if option == "nesterov" else []
            options = options_of("--optimizer", optimizer, flag, *value, *more)
            wanted = (several or 0.25) if value else True
            assert options.optimizer_kwargs()[option] == wanted
            if option == "etas":
                continue  # this one must lie around 1
            parameter = torch.nn.Parameter(torch.zeros(2))
            group = make_optimizer(options, "fusedopt", [parameter]).param_groups[0]
            assert group.get(option, wanted) == wanted


def test_options_are_kept_and_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = (*SMALL, "--betas", "0.8,0.95", "--amsgrad", "--eps", 1e-6, "--epochs", 2)
    train(*given, "--out", tmp_path)
    assert "betas 0.8, 0.95" in capsys.readouterr().out
    config = json.loads((tmp_path / "config.json").read_text())["options"]
    assert (config["betas"], config["amsgrad"], config["eps"]) == ([0.8, 0.95], True, 1e-6)
    assert "rho" not in config and "nesterov" not in config
    train("--resume", tmp_path)
    line = error_of(capsys, "--resume", tmp_path, "--betas", "0.9,0.95")
    assert line.endswith("was trained with --betas (0.8, 0.95) (not (0.9, 0.95))")
    assert "--alpha: adamw has none" in error_of(capsys, "--resume", tmp_path, "--alpha", 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--betas", "0.9"), "argument --betas: '0.9' is not of the form 0.9,0.999"),
        (("--betas", "0.9,0.99,0.999"), "--betas: adamw takes 2 numbers, as (0.9, 0.999)"),
        (("--betas", "0.9,1.5"), "--optimizer adamw: Invalid beta parameter at index 1: 1.5"),
        (("--eps", "nan"), "argument --eps: must be a number, at least 0, not nan"),
        (("--nesterov",), "--nesterov: adamw has none; sgd does"),
        (("--rho", 0.5), "--rho: adamw has none; adadelta does"),
        (
            ("--optimizer", "sgd", "--nesterov", "--momentum", 0),
            "--optimizer sgd: Nesterov momentum requires a momentum and zero dampening",
        ),
    ],
)
def test_bad_options_of_optimizers_get_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...], message: str
) -> None:
    line = error_of(capsys, *SMALL, *options, "--out", tmp_path / "out")
    assert line.endswith(f"error: {message}")
    assert not list(tmp_path.iterdir())
