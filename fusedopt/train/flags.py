"""The training script's command line, in sections: one flag for each field of `Options`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fusedopt.train.optimizers import ALL_OPTIONS, DEFAULTS, OPTIONS, default_of, having
from fusedopt.train.options import IMPLEMENTATIONS, MODES, PRECISIONS
from fusedopt.train.parsers import (
    augmentation,
    classes,
    key_value,
    lr_of_some,
    number,
    numbers,
    some_of,
    threads,
    workers,
)
from fusedopt.train.strategy import STRATEGIES


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the table at the end as it is."""


def add_options(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Adds all options of a training run, in sections, to a parser with SUPPRESS as default.

    Args:
        parser: of the command line.
        several: for a comparison: several optimizers and implementations, and no --resume.
    """
    _add_model(parser)
    _add_data(parser)
    _add_optimizer(parser, several)
    _add_recipe(parser)
    _add_precision(parser, several)
    _add_transfer(parser)
    _add_run(parser, several)


def _add_model(parser: argparse.ArgumentParser) -> None:
    from fusedopt.train.models import MODELS

    add = parser.add_argument_group("model").add_argument
    names = ", ".join(MODELS)
    add("--model", default="resnet20", metavar="NAME", help=f"{names}, or torchvision:NAME")
    add("--weight-init", choices=("he", "xavier"), help="of all layers; else the model's own")
    add("--pretrained", metavar="WEIGHTS",
        help="a file that torchvision publishes, or 'default'; images are normalised as for these"
        " weights")  # fmt: skip


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    one_up = number(int, 1)
    add("--data", default="digits", metavar="SPEC",
        help="digits, cifar10, cifar100, mnist, fashion-mnist, or folder:PATH")  # fmt: skip
    add("--data-dir", type=Path, default=Path("data"), metavar="PATH", help="where data sets lie")
    add("--download", action="store_true", help="fetch a data set that isn't there")
    add("--image-size", type=one_up, metavar="PIXELS", help="height and width; else the data's own")
    add("--classes", type=classes, metavar="0,3,5-9", help="only these classes")
    add("--per-class", type=one_up, metavar="N", help="only N training images of each class")
    add("--augment", type=augmentation, metavar="NAMES",
        help="none, or some of crop,flip,resized-crop, and randaugment,mixup,cutmix, which need"
        " torchvision; else what suits the data")  # fmt: skip
    add("--class-weights", choices=("balanced",),
        help="weight each class in the training loss by images / (classes * images of the class);"
        " validation and test stay unweighted")  # fmt: skip
    add("--sampler", choices=("balanced",),
        help="draw training images with replacement, all classes equally often")  # fmt: skip
    add("--skip-bad-images", action="store_true",
        help="train without the files of a folder that can't be read, and list them")  # fmt: skip
    add("--workers", type=workers, default=0, metavar="N", help="processes that load")


def _add_optimizer(parser: argparse.ArgumentParser, several: bool) -> None:
    add = parser.add_argument_group("optimizer").add_argument
    zero_up = number(float, 0)
    if several:
        add("--optimizers", type=some_of(DEFAULTS), default="all", metavar="NAMES",
            help=f"all, or some of {','.join(DEFAULTS)}")  # fmt: skip
        add("--impl", type=some_of(IMPLEMENTATIONS), default="fusedopt,torch", metavar="NAMES",
            help="fusedopt, torch, or both")  # fmt: skip
    else:
        add("--optimizer", choices=tuple(DEFAULTS), default="adamw", help="the optimizer")
        add("--impl", choices=IMPLEMENTATIONS, default="fusedopt",
            help="whose implementation of it: ours or torch.optim's")  # fmt: skip
    default = "the default depends on model and optimizer: below"
    if several:
        add("--lr", type=lr_of_some, metavar="LR",
            help=f"learning rate of all, or of some: sgd=0.1,adam=0.001; {default}")  # fmt: skip
    else:
        add("--lr", type=zero_up, help=f"learning rate; {default}")
    for name in ALL_OPTIONS:
        add(f"--{name.replace('_', '-')}", **_kind(name), help=_of_which(name))
    add("--no-decay-on-norm-and-bias", action="store_true",
        help="no weight decay on biases and on scale and shift of norms")  # fmt: skip


def _kind(option: str) -> dict[str, Any]:
    """Returns how argparse parses an option of an optimizer: its default says so."""
    default = OPTIONS[having(option)[0]][option]
    if isinstance(default, bool):
        return {"action": "store_true"}
    if isinstance(default, tuple):
        return {"type": numbers, "metavar": "A,B"}
    return {"type": number(float, 0), "metavar": "NUMBER"}


def _of_which(option: str) -> str:
    """Says which optimizers have an option, and their defaults."""
    defaults: dict[str, list[str]] = {}
    for optimizer in having(option):
        default = default_of(optimizer, option)
        values = default if isinstance(default, tuple) else (default,)
        text = ",".join(f"{value:g}" for value in values)
        text = "off" if default is False else text
        defaults.setdefault(text, []).append(optimizer)
    return "of " + "; ".join(f"{', '.join(names)}: {text}" for text, names in defaults.items())


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("recipe").add_argument
    one_up, fraction = number(int, 1), number(float, 0, 1)
    add("--epochs", type=one_up, default=20, help="epochs in all, those of --resume included")
    add("--batch-size", type=one_up, default=64, help="images per batch, of all processes together")
    add("--accumulate", type=one_up, default=1, metavar="N", help="batches per step")
    add("--scheduler", default="cosine", metavar="NAME",
        help="of the learning rate: none, step, multistep, exponential, cosine, cosine-restarts,"
        " one-cycle, cyclic, plateau, linear, constant, polynomial, or torch's name of its"
        " class")  # fmt: skip
    add("--scheduler-arg", type=key_value, action="append", metavar="NAME=VALUE",
        help="an argument of the scheduler, such as step_size=10; may be repeated")  # fmt: skip
    add("--scheduler-interval", choices=("epoch", "step"),
        help="when it steps; the default is step for cosine, one-cycle and cyclic, else"
        " epoch")  # fmt: skip
    add("--warmup", type=number(float, 0), metavar="EPOCHS",
        help="raise the learning rate evenly over so many epochs, before the scheduler begins; the"
        " default is a twentieth of the epochs with cosine, else 0")  # fmt: skip
    add("--label-smoothing", type=fraction, default=0.0, help="share given to all classes")
    norm = number(float, 0, above=True)
    add("--clip-norm", type=norm, help="greatest norm of the gradients")
    add("--clip", dest="clip_norm", type=norm, help="the same", metavar="CLIP_NORM")
    add("--ema", type=fraction, metavar="DECAY",
        help="validate and test a moving average of the weights, such as 0.99")  # fmt: skip
    add("--patience", type=one_up, metavar="EPOCHS",
        help="stop after so many epochs without a better validation figure")  # fmt: skip
    add("--monitor", choices=("accuracy", "loss"), default="accuracy",
        help="the validation figure that says which epoch is best; of equal accuracies the smaller"
        " loss does")  # fmt: skip
    add("--keep", choices=("best", "last"), default="best",
        help="which epoch's network is tested and kept as model.pt; the other one is kept as"
        " last.pt or best.pt")  # fmt: skip


def _add_precision(parser: argparse.ArgumentParser, several: bool) -> None:
    add = parser.add_argument_group("precision").add_argument
    if several:
        add("--precision", type=some_of(MODES), default="fp32", metavar="NAMES",
            help=f"all, or some of {','.join(MODES)}")  # fmt: skip
        return
    add("--precision", choices=tuple(PRECISIONS), default="fp32",
        help="of forward and backward pass; weights stay in fp32, but for bf16-true")  # fmt: skip
    add("--stochastic-rounding", action="store_true",
        help="with bf16-true: round weights and state so that the means are right")  # fmt: skip
    add("--master-weights", action="store_true",
        help="with bf16-true: keep the lower half of each weight's float32 as well")  # fmt: skip


def _add_transfer(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("transfer learning and fine-tuning").add_argument
    add("--init", type=Path, metavar="PATH", help="begin with the weights of this checkpoint")
    add("--new-head", action="store_true", help="with a fresh last layer, for other classes")
    add("--freeze", choices=("backbone",), help="train only the last layer")
    add("--lr-decay-by-depth", type=number(float, 0, 1, above=True), metavar="FACTOR",
        help="a layer's learning rate is FACTOR times that of the layer above it")  # fmt: skip


def _add_run(parser: argparse.ArgumentParser, several: bool) -> None:
    add = parser.add_argument_group("run").add_argument
    one_up = number(int, 1)
    add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="of split, weights, order")
    if several:
        add("--seeds", type=one_up, default=3, metavar="N",
            help="train with so many seeds, from --seed on: one seed's differences may be"
            " chance")  # fmt: skip
    add("--threads", type=threads, metavar="N", help="CPU threads; else torch's choice")
    add("--device", help="cpu, cuda or cuda:N; cuda where there is one")
    add("--out", type=Path, metavar="FOLDER",
        help="keep checkpoints, metrics and charts in this folder")  # fmt: skip
    if not several:
        add("--resume", type=Path, metavar="FOLDER",
            help="continue the run in this folder, with its options: bit for bit, given the same"
            " --threads")  # fmt: skip
    add("--checkpoint-every", type=one_up, metavar="STEPS",
        help="write a checkpoint every so many steps too, not only after each epoch")  # fmt: skip
    if not several:
        add("--export", action="store_true",
            help="write the network as model.pt2, by torch.export; with --resume also that of a"
            " finished run")  # fmt: skip
        add("--no-cost", action="store_true",
            help="don't measure, at the end, what the optimizer takes beside torch's")  # fmt: skip
        add("--strategy", choices=STRATEGIES,
            help="how the processes of torchrun share the work: ddp, the default, fsdp (FSDP2), or"
            " zero (ZeroRedundancyOptimizer)")  # fmt: skip
