"""The training script's options: what the command line takes, its sections, and its checks."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from fusedopt.train import world
from fusedopt.train.strategy import STRATEGIES

# What each optimizer gets where the command line doesn't say otherwise. The keys are also the
# options it has: --momentum with adam is an error.
DEFAULTS: dict[str, dict[str, float]] = {
    "sgd": {"lr": 0.05, "weight_decay": 5e-4, "momentum": 0.9},
    "adagrad": {"lr": 0.02, "weight_decay": 0.0},
    "rmsprop": {"lr": 1e-3, "weight_decay": 0.0, "momentum": 0.0},
    "adadelta": {"lr": 1.0, "weight_decay": 0.0},
    "adam": {"lr": 3e-3, "weight_decay": 0.0},
    "adamw": {"lr": 3e-3, "weight_decay": 1e-2},
}
AUGMENTATION = {"cifar10": "crop,flip", "cifar100": "crop,flip", "folder": "resized-crop,flip"}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# These may change when a run is resumed. --impl is among them: a fusedopt checkpoint continues
# with torch.optim, and the other way round, only not bit for bit.
FREE = {"impl", "epochs", "threads", "device", "workers", "data_dir", "download"}
FREE |= {"out", "resume", "checkpoint_every", "strategy"}


class UserError(Exception):
    """Something that the user can put right; its text is the whole message."""


@dataclass(frozen=True)
class Options:
    """What the command line says, with the defaults filled in that depend on other options."""

    # model
    model: str
    weight_init: str | None
    pretrained: str | None
    # data
    data: str
    data_dir: Path
    download: bool | None
    image_size: int | None
    classes: tuple[int, ...] | None
    per_class: int | None
    augment: str
    workers: int
    # optimizer
    optimizer: str
    impl: str
    lr: float
    weight_decay: float
    momentum: float | None
    no_decay_on_norm_and_bias: bool | None
    # recipe
    epochs: int
    batch_size: int
    accumulate: int
    scheduler: str
    scheduler_arg: tuple[tuple[str, Any], ...]
    scheduler_interval: str | None
    label_smoothing: float
    clip_norm: float | None
    ema: float | None
    patience: int | None
    monitor: str
    precision: str
    # transfer
    init: Path | None
    new_head: bool | None
    freeze: str | None
    lr_decay_by_depth: float | None
    # run
    seed: int
    threads: int | None
    device: str
    out: Path | None
    resume: Path | None
    checkpoint_every: int | None
    strategy: str | None

    def optimizer_kwargs(self) -> dict[str, float]:
        """Returns the keyword arguments of the optimizer's constructor."""
        return {name: getattr(self, name) for name in DEFAULTS[self.optimizer]}

    def plain(self) -> dict[str, Any]:
        """Returns the options as JSON has them."""
        values = dataclasses.asdict(self)
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


def _number(
    kind: type, low: float, high: float = math.inf, *, above: bool = False
) -> Callable[[str], float]:
    """Returns a parser of numbers from `low` (or above it) to `high`, for argparse."""

    def parse(text: str) -> float:
        noun = "a whole number" if kind is int else "a number"
        limits = f"{'above' if above else 'at least'} {low}"
        limits = limits if high == math.inf else f"from {low} to {high}"
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun}") from None
        if not (low <= value <= high) or value == math.inf or (above and value == low):
            raise argparse.ArgumentTypeError(f"must be {noun}, {limits}, not {text}")
        return value

    return parse


def _classes(text: str) -> tuple[int, ...]:
    """Parses "0,3,5-9"."""
    chosen: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            chosen += range(int(first), int(last if dash else first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 0,3,5-9") from None
    return tuple(chosen)


def _key_value(text: str) -> tuple[str, Any]:
    """Parses "key=value": a Python literal, or else a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _augmentation(text: str) -> str:
    from fusedopt.train.augment import SPECS  # here, because it needs fusedopt[train]

    names = text.split(",")
    wrong = [name for name in names if name not in SPECS]
    if wrong or ("none" in names and len(names) > 1):
        some = ", ".join(name for name in SPECS if name != "none")
        raise argparse.ArgumentTypeError(f"{text!r} is not 'none' or some of {some}")
    return text


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds all options of a training run, in sections, to a parser with SUPPRESS as default."""
    for add in (_add_model, _add_data, _add_optimizer, _add_recipe, _add_transfer, _add_run):
        add(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    from fusedopt.train.models import MODELS

    add = parser.add_argument_group("model").add_argument
    names = ", ".join(MODELS)
    add("--model", default="resnet20", metavar="NAME", help=f"{names}, or torchvision:NAME")
    add("--weight-init", choices=("he", "xavier"), help="of all layers; else the model's own")
    add("--pretrained", metavar="WEIGHTS", help="for torchvision:NAME: a file, or 'default'")


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    one_up = _number(int, 1)
    add("--data", default="digits", metavar="SPEC",
        help="digits, cifar10, cifar100, mnist, fashion-mnist, or folder:PATH")  # fmt: skip
    add("--data-dir", type=Path, default=Path("data"), metavar="PATH", help="where data sets lie")
    add("--download", action="store_true", help="fetch a data set that isn't there")
    add("--image-size", type=one_up, metavar="PIXELS", help="height and width; else the data's own")
    add("--classes", type=_classes, metavar="0,3,5-9", help="only these classes")
    add("--per-class", type=one_up, metavar="N", help="only N training images of each class")
    add("--augment", type=_augmentation, metavar="NAMES",
        help="none, or some of crop,flip,resized-crop; else what suits the data")  # fmt: skip
    add("--workers", type=_number(int, 0), default=0, metavar="N", help="processes that load")


def _add_optimizer(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("optimizer").add_argument
    zero_up = _number(float, 0)
    own = "the default depends on the optimizer"
    add("--optimizer", choices=tuple(DEFAULTS), default="adamw", help="the optimizer")
    add("--impl", choices=("fusedopt", "torch"), default="fusedopt",
        help="whose implementation of it: ours or torch.optim's")  # fmt: skip
    add("--lr", type=zero_up, help=f"learning rate; {own}")
    add("--weight-decay", type=zero_up, help=f"weight decay; {own}")
    add("--momentum", type=zero_up, help="of sgd or rmsprop")
    add("--no-decay-on-norm-and-bias", action="store_true",
        help="no weight decay on biases and on scale and shift of norms")  # fmt: skip


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("recipe").add_argument
    one_up, fraction = _number(int, 1), _number(float, 0, 1)
    add("--epochs", type=one_up, default=20, help="epochs in all, those of --resume included")
    add("--batch-size", type=one_up, default=64, help="images per batch, of all processes together")
    add("--accumulate", type=one_up, default=1, metavar="N", help="batches per step")
    add("--scheduler", default="exponential", metavar="NAME",
        help="none, step, multistep, exponential, cosine, cosine-restarts, one-cycle, cyclic,"
        " plateau, linear, constant, polynomial, or torch's name of its class")  # fmt: skip
    add("--scheduler-arg", type=_key_value, action="append", metavar="NAME=VALUE",
        help="an argument of the scheduler, such as step_size=10; may be repeated")  # fmt: skip
    add("--scheduler-interval", choices=("epoch", "step"),
        help="when it steps; the default is epoch, and step for one-cycle and cyclic")  # fmt: skip
    add("--label-smoothing", type=fraction, default=0.0, help="share given to all classes")
    add("--clip-norm", type=_number(float, 0, above=True), help="greatest norm of the gradients")
    add("--ema", type=fraction, metavar="DECAY",
        help="validate and test a moving average of the weights, such as 0.99")  # fmt: skip
    add("--patience", type=one_up, metavar="EPOCHS",
        help="stop after so many epochs without a better validation figure, and go back to the"
        " best weights")  # fmt: skip
    add("--monitor", choices=("loss", "accuracy"), default="loss", help="figure for --patience")
    add("--precision", choices=tuple(PRECISIONS), default="fp32",
        help="of forward and backward pass; weights stay in fp32")  # fmt: skip


def _add_transfer(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("transfer learning and fine-tuning").add_argument
    add("--init", type=Path, metavar="PATH", help="begin with the weights of this checkpoint")
    add("--new-head", action="store_true", help="with a fresh last layer, for other classes")
    add("--freeze", choices=("backbone",), help="train only the last layer")
    add("--lr-decay-by-depth", type=_number(float, 0, 1, above=True), metavar="FACTOR",
        help="a layer's learning rate is FACTOR times that of the layer above it")  # fmt: skip


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("run").add_argument
    one_up = _number(int, 1)
    add("--seed", type=_number(int, 0, 2**32 - 1), default=0, help="of split, weights, order")
    add("--threads", type=one_up, help="CPU threads; else torch's choice")
    add("--device", help="cpu, cuda or cuda:N; cuda where there is one")
    add("--out", type=Path, metavar="FOLDER",
        help="keep checkpoints, metrics and charts in this folder")  # fmt: skip
    add("--resume", type=Path, metavar="FOLDER",
        help="continue the run in this folder, with its options: bit for bit, given the same"
        " --threads")  # fmt: skip
    add("--checkpoint-every", type=one_up, metavar="STEPS",
        help="write a checkpoint every so many steps too, not only after each epoch")  # fmt: skip
    add("--strategy", choices=STRATEGIES,
        help="how the processes of torchrun share the work: ddp, the default, fsdp (FSDP2), or"
        " zero (ZeroRedundancyOptimizer)")  # fmt: skip


def make_options(given: dict[str, Any]) -> Options:
    """Returns the checked options.

    Args:
        given: what argparse made of the command line.

    Raises:
        UserError: options that don't go together, or can't work on this machine.
    """
    values = {field.name: None for field in fields(Options)} | given
    own = DEFAULTS[values["optimizer"]]
    if values["momentum"] is not None and "momentum" not in own:
        raise UserError(f"--momentum: {values['optimizer']} has none; sgd and rmsprop do")
    for name, default in own.items():
        if values[name] is None:
            values[name] = default
    if values["augment"] is None:
        values["augment"] = AUGMENTATION.get(values["data"].partition(":")[0], "crop")
    values["device"] = _device(values["device"])
    values["scheduler_arg"] = tuple(dict(values["scheduler_arg"] or ()).items())
    if values["classes"] is not None:
        values["classes"] = tuple(values["classes"])
    if values["new_head"] and values["init"] is None:
        raise UserError("--new-head: a fresh network has one already; give --init as well")
    if values["checkpoint_every"] and values["out"] is None and values["resume"] is None:
        raise UserError("--checkpoint-every: give --out, the folder to write to, as well")
    if world.launched():
        values["strategy"] = values["strategy"] or "ddp"
        if ":" in values["device"]:
            raise UserError("--device: each process takes a GPU of its own with --device cuda")
    elif values["strategy"] is not None:
        raise UserError(
            "--strategy: is for several processes, which torchrun starts:"
            " torchrun --nproc-per-node 2 -m fusedopt.train"
        )
    return Options(**values)


def _device(name: str | None) -> str:
    """Returns the name of a device that is there; for None CUDA's first, or else the CPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        return "cuda" if count else "cpu"
    there = ["cpu"] + ["cuda"] * (count > 0) + [f"cuda:{i}" for i in range(count)]
    if name not in there:
        are = f"{', '.join(map(repr, there))} {'is' if len(there) == 1 else 'are'}"
        raise UserError(f"--device: {name!r} is not available here; {are}")
    return name
