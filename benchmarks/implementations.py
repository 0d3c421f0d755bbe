"""The implementations that the benchmarks compare: fusedopt, torch's three, and optional peers."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from benchmarks.optimizers import Choice


class Absent(Exception):
    """An implementation can't run a case; the message says why."""


@dataclass(frozen=True, eq=False)
class Implementation:
    """Where an optimizer comes from.

    Attributes:
        name: What `--implementation` takes and the tables print.
        module: The Python module with its classes.
        options: Keyword arguments that select it.
        classes: From torch.optim's class names to this module's and further keyword arguments;
            a class that is not listed doesn't exist there. None: the same names.
        devices: Where it runs.
        ignores: Options that its constructors accept without heeding them.
    """

    name: str
    module: str
    options: Mapping[str, Any] = field(default_factory=dict)
    classes: Mapping[str, tuple[str, Mapping[str, Any]]] | None = None
    devices: tuple[str, ...] = ("cpu", "cuda")
    ignores: tuple[str, ...] = ()

    @property
    def is_torch(self) -> bool:
        """Whether it is one of torch's own."""
        return self.module == "torch.optim"

    def has(self, choice: Choice) -> bool:
        """Whether it is installed and has this optimizer on the CPU."""
        try:
            self.make(choice, [Parameter(torch.zeros(1))])
        except Absent:
            return False
        return True

    def make(self, choice: Choice, params: Sequence[Parameter], **options: Any) -> Optimizer:
        """Makes the optimizer.

        Raises:
            Absent: It isn't installed, or has no such optimizer, or refuses these parameters.
        """
        device = params[0].device.type
        if device not in self.devices:
            raise Absent(f"doesn't run on {device}")
        package = self.module.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            raise Absent("not installed")
        ignored = [option for option in self.ignores if choice.options.get(option)]
        if ignored:
            raise Absent(f"has no {', '.join(ignored)}")
        name, extra = choice.cls, {}
        if self.classes is not None:
            if choice.cls not in self.classes:
                raise Absent(f"has no {choice.cls}")
            name, extra = self.classes[choice.cls]
        try:
            cls = getattr(importlib.import_module(self.module), name)
        except Exception as error:  # a broken installation fails in its own ways
            raise Absent(_first_line(error)) from error
        try:
            return cls(params, **{**choice.options, **self.options, **extra, **options})
        except (TypeError, ValueError, RuntimeError) as error:
            raise Absent(f"has no such {choice.cls}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:150]


_ALL = (
    Implementation("fusedopt", "fusedopt"),
    Implementation("fused", "torch.optim", {"fused": True}),
    Implementation("foreach", "torch.optim", {"foreach": True}),
    Implementation("for-loop", "torch.optim", {"foreach": False}),
    Implementation(
        "deepspeed", "deepspeed.ops.adam", classes={
            "Adam": ("DeepSpeedCPUAdam", {"adamw_mode": False}),
            "AdamW": ("DeepSpeedCPUAdam", {"adamw_mode": True, "weight_decay": 1e-2}),
        }, devices=("cpu",), ignores=("amsgrad",),
    ),
    Implementation(
        "deepspeed-adagrad", "deepspeed.ops.adagrad",
        classes={"Adagrad": ("DeepSpeedCPUAdagrad", {"eps": 1e-10})}, devices=("cpu",),
    ),
    Implementation(
        "bitsandbytes", "bitsandbytes.optim", classes={
            "Adam": ("Adam32bit", {}), "AdamW": ("AdamW32bit", {}), "SGD": ("SGD32bit", {}),
            "RMSprop": ("RMSprop32bit", {}), "Adagrad": ("Adagrad32bit", {}),
        }, ignores=("amsgrad",),
    ),
    # 8-bit states: fewer bytes to move, and less exact.
    Implementation(
        "torchao-8bit", "torchao.optim",
        classes={"Adam": ("Adam8bit", {}), "AdamW": ("AdamW8bit", {})},
    ),
    Implementation(
        "optimi", "optimi", classes={
            "SGD": ("SGD", {}), "Adam": ("Adam", {"lr": 1e-3}),
            "AdamW": ("AdamW", {"lr": 1e-3}),
        },
    ),
    Implementation(
        "apex", "apex.optimizers", classes={
            "SGD": ("FusedSGD", {}), "Adagrad": ("FusedAdagrad", {}),
            "Adam": ("FusedAdam", {"adam_w_mode": False}),
            "AdamW": ("FusedAdam", {"adam_w_mode": True, "weight_decay": 1e-2}),
        }, devices=("cuda",),
    ),
)  # fmt: skip
IMPLEMENTATIONS = {implementation.name: implementation for implementation in _ALL}


def check(implementation: Implementation, choice: Choice, dtype: torch.dtype, device: str) -> str:
    """Compares a few steps over 1000 elements with torch's for-loop in float64.

    A kernel that does less than its work is fast. What fails here is timed and shown, but isn't
    taken for anybody's best.

    Returns:
        What is wrong, or an empty string.

    Raises:
        Absent: It can't run this at all.
    """
    start = torch.linspace(-1, 1, 1000, dtype=torch.float64).to(dtype)
    grad = torch.linspace(1.5, 0.5, 1000, dtype=torch.float64).to(dtype)
    grad[::2] *= -1

    def run(which: Implementation, dtype: torch.dtype, device: str) -> torch.Tensor:
        param = Parameter(start.to(device, dtype, copy=True))
        param.grad = grad.to(device, dtype, copy=True)
        optimizer = which.make(choice, [param], lr=choice.visible_lr)
        try:
            for _ in range(3):
                optimizer.step()
        except Exception as error:
            raise Absent(_first_line(error)) from error
        return param.detach().cpu().double()

    exact = run(IMPLEMENTATIONS["for-loop"], torch.float64, "cpu")
    error = (run(implementation, dtype, device) - exact).abs().mean()
    moved = (exact - start.double()).abs().mean()
    if error <= 0.05 * moved:
        return ""
    return f"wrong: off by {float(error / moved):.0%} of what a step changes"
