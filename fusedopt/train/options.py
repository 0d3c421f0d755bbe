"""The training script's options: their defaults, and whether they go together."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from fusedopt.train import world
from fusedopt.train.optimizers import (
    ALL_OPTIONS,
    DEFAULTS,
    default_of,
    has_option,
    having,
    learning_rate,
)

IMPLEMENTATIONS = ("fusedopt", "torch")
AUGMENTATION = {"cifar10": "crop,flip", "cifar100": "crop,flip", "folder": "resized-crop,flip"}
PRECISIONS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "bf16-true": torch.bfloat16,  # the weights and the optimizer's state as well
}
# For a comparison: these, and how fusedopt's optimizers may store weights in bfloat16.
_ROUNDED, _HALVES = {"stochastic_rounding": True}, {"master_weights": True}
MODES: dict[str, dict[str, Any]] = {
    **{name: {"precision": name} for name in PRECISIONS},
    "bf16-true+stochastic-rounding": {"precision": "bf16-true", **_ROUNDED},
    "bf16-true+master-weights": {"precision": "bf16-true", **_HALVES},
    "bf16-true+master-weights+stochastic-rounding": {
        "precision": "bf16-true", **_HALVES, **_ROUNDED,
    },
}  # fmt: skip

FOLDER = "folder:"  # before a path, in --data

# These may change when a run is resumed. --impl is among them: a fusedopt checkpoint continues
# with torch.optim, and the other way round, only not bit for bit.
FREE = {"impl", "epochs", "threads", "device", "workers", "data_dir", "download"}
FREE |= {"out", "resume", "checkpoint_every", "strategy", "skip_bad_images", "no_cost", "export"}


class UserError(Exception):
    """Something that the user can put right; its text is the whole message."""


class Failed(Exception):
    """What ends a run that was asked for in the right way; its text is the whole message."""


class Diverged(Failed):
    """The loss or the weights are no finite numbers any more.

    Attributes:
        step: the number of the optimizer step at which that was found.
    """

    def __init__(self, text: str, step: int = 0) -> None:
        super().__init__(text)
        self.step = step


class OneProcessError(Failed):
    """Something that only one of several processes has met, and the others don't know."""


@dataclass(frozen=True)
class Options:
    """What the command line says, with the defaults filled in that depend on other options.

    `settings` are the options of the optimizer that were given or that differ here from its class.
    """

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
    class_weights: str | None
    sampler: str | None
    skip_bad_images: bool | None
    workers: int
    # optimizer
    optimizer: str
    impl: str
    lr: float
    settings: dict[str, Any]
    no_decay_on_norm_and_bias: bool | None
    # recipe
    epochs: int
    batch_size: int
    accumulate: int
    scheduler: str
    scheduler_arg: tuple[tuple[str, Any], ...]
    scheduler_interval: str | None
    warmup: float
    label_smoothing: float
    clip_norm: float | None
    ema: float | None
    patience: int | None
    monitor: str
    keep: str
    precision: str
    stochastic_rounding: bool | None
    master_weights: bool | None
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
    no_cost: bool | None
    export: bool | None
    strategy: str | None

    def optimizer_kwargs(self) -> dict[str, Any]:
        """Returns the keyword arguments of the optimizer's constructor."""
        return {"lr": self.lr, **self.settings}

    def precision_kwargs(self) -> dict[str, Any]:
        """Returns those that only fusedopt's constructors have."""
        names = [name for name in ("stochastic_rounding", "master_weights") if getattr(self, name)]
        return {name: True for name in names} | ({"seed": self.seed} if names else {})

    def weights_dtype(self) -> torch.dtype:
        """Returns the dtype of the weights, and of the images that the network gets."""
        return torch.bfloat16 if self.precision == "bf16-true" else torch.float32

    def plain(self) -> dict[str, Any]:
        """Returns the options as JSON has them, those of the optimizer among the others."""
        values = dataclasses.asdict(self)
        values |= values.pop("settings")
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


def no_option(name: str, reason: str) -> UserError:
    """Returns the error that an optimizer's option was given to one that doesn't have it."""
    *others, last = having(name)
    do = f"{', '.join(others)} and {last} do" if others else f"{last} does"
    return UserError(f"--{name.replace('_', '-')}: {reason}; {do}")


def make_options(given: dict[str, Any]) -> Options:
    """Returns the checked options.

    Args:
        given: what argparse made of the command line.

    Raises:
        UserError: options that don't go together, or can't work on this machine.
    """
    values = {field.name: None for field in fields(Options)} | given
    values["device"] = pick_device(values["device"])
    _settle_data(values)
    _settle_optimizer(values)
    _check_precision(values)
    _check_transfer(values)
    _check_run(values)
    return Options(**values)


def _settle_data(values: dict[str, Any]) -> None:
    if values["augment"] is None:
        values["augment"] = AUGMENTATION.get(values["data"].partition(":")[0], "crop")
    # Where the data are must be known from another working directory, too.
    values["data_dir"] = values["data_dir"].absolute()
    if values["data"] == FOLDER:
        raise UserError(f"--data: {FOLDER!r} names no folder; the form is {FOLDER}PATH")
    if values["data"].startswith(FOLDER):
        values["data"] = f"{FOLDER}{folder_path(values['data'])}"
    if values["classes"] is not None:
        values["classes"] = tuple(values["classes"])
    if values["class_weights"] and values["sampler"]:
        raise UserError("--sampler: balanced samples need no --class-weights; give one of the two")
    if values["class_weights"] and {"mixup", "cutmix"} & set(values["augment"].split(",")):
        raise UserError(
            "--class-weights: labels that mixup or cutmix have mixed can't be weighted; --sampler"
            " balanced shows rare classes as often as others"
        )


def _settle_optimizer(values: dict[str, Any]) -> None:
    optimizer, own = values["optimizer"], dict(DEFAULTS[values["optimizer"]])
    for name in ALL_OPTIONS:
        value = values.pop(name, None)
        if value is not None and not has_option(optimizer, name):
            raise no_option(name, f"{optimizer} has none")
        if value is not None:
            default = default_of(optimizer, name)
            if isinstance(default, tuple) and len(value) != len(default):
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag}: {optimizer} takes {len(default)} numbers, as {default}")
            own[name] = value
    own.pop("lr")
    values["settings"] = own
    if values["lr"] is None:
        values["lr"] = learning_rate(values["model"], optimizer)
    values["scheduler_arg"] = tuple(dict(values["scheduler_arg"] or ()).items())
    if values["warmup"] is None:
        own_length = "T_max" in dict(values["scheduler_arg"])
        cosine = values["scheduler"] in ("cosine", "CosineAnnealingLR") and not own_length
        values["warmup"] = values["epochs"] / 20 if cosine else 0.0


def _check_precision(values: dict[str, Any]) -> None:
    for name in ("stochastic_rounding", "master_weights"):
        flag = f"--{name.replace('_', '-')}"
        if values[name] and values["precision"] != "bf16-true":
            raise UserError(f"{flag}: is for weights in bfloat16; give --precision bf16-true")
        if values[name] and values["impl"] == "torch":
            raise UserError(f"{flag}: torch.optim has none; give --impl fusedopt")
    if values["ema"] is not None and values["precision"] == "bf16-true":
        raise UserError("--ema: an average in bfloat16 would lose what each step adds to it")


def _check_transfer(values: dict[str, Any]) -> None:
    if values["new_head"] and values["init"] is None:
        raise UserError("--new-head: a fresh network has one already; give --init as well")
    weights = values["init"] or values["pretrained"]
    if values["freeze"] and not weights and values["resume"] is None:
        raise UserError(
            "--freeze: the backbone of a fresh network has learnt nothing; give --init or"
            " --pretrained as well"
        )
    for name in ("weight_init", "pretrained"):
        if values[name] is not None and values["init"] is not None:
            raise UserError(f"--{name.replace('_', '-')}: --init says what weights to begin with")


def _check_run(values: dict[str, Any]) -> None:
    for name in ("checkpoint_every", "export"):
        if values[name] and values["out"] is None and values["resume"] is None:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag}: give --out, the folder to write to, as well")
    if world.launched():
        values["strategy"] = values["strategy"] or "ddp"
        if ":" in values["device"]:
            raise UserError("--device: each process takes a GPU of its own with --device cuda")
    elif values["strategy"] is not None:
        raise UserError(
            "--strategy: is for several processes, which torchrun starts:"
            " torchrun --nproc-per-node 2 -m fusedopt.train"
        )


def folder_path(spec: str) -> Path:
    """Returns the absolute path that "folder:PATH" names; "~" is the user's home."""
    path = Path(os.path.expanduser(spec.removeprefix(FOLDER))).absolute()
    plain = Path(os.path.normpath(path))  # without "..", unless one comes after a link
    return plain if os.path.realpath(plain) == os.path.realpath(path) else path


def pick_device(name: str | None) -> str:
    """Returns the name of a device that is there; for None CUDA's first, or else the CPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        return "cuda" if count else "cpu"
    there = ["cpu"] + ["cuda"] * (count > 0) + [f"cuda:{i}" for i in range(count)]
    if name not in there:
        are = f"{', '.join(map(repr, there))} {'is' if len(there) == 1 else 'are'}"
        raise UserError(f"--device: {name!r} is not available here; {are}")
    return name
