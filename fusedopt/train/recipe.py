"""What the recipe adds to the plain loop: parameter groups, freezing, averages, early stopping."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusedopt.train import strategy
from fusedopt.train.models import depth_of_parameters, head_of
from fusedopt.train.models.parts import NORMS
from fusedopt.train.options import Options


def parameter_groups(
    model: nn.Module, options: Options, depths: dict[str, int] | None = None
) -> list[dict[str, Any]]:
    """Returns the trained parameters as an optimizer takes them, in groups by depth and decay.

    Args:
        model: with `requires_grad` off for what is frozen.
        options: `lr_decay_by_depth` and `no_decay_on_norm_and_bias` make several groups.
        depths: of the parameters, by name; None looks at the model, which FSDP2 must not have
            changed: it gives modules other classes.
    """
    undecayed = _norms_and_biases(model) if options.no_decay_on_norm_and_bias else set()
    factor = options.lr_decay_by_depth
    depths = (depth_of_parameters(model) if depths is None else depths) if factor else {}
    deepest = max(depths.values(), default=0)
    groups: dict[tuple[int, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = depths.get(name, 0), parameter not in undecayed
            groups.setdefault(key, []).append(parameter)
    made = []
    for (depth, decayed), parameters in groups.items():
        group: dict[str, Any] = {"params": parameters}
        if factor:
            group["lr"] = options.lr * factor ** (deepest - depth)
        if not decayed:
            group["weight_decay"] = 0.0
        made.append(group)
    return made


def _norms_and_biases(model: nn.Module) -> set[Tensor]:
    return {
        parameter
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, NORMS) or name == "bias"
    }


def freeze_backbone(model: nn.Module) -> None:
    """Leaves gradients to the last layer's parameters only."""
    model.requires_grad_(False)
    head_of(model).requires_grad_(True)


def set_train_mode(model: nn.Module, options: Options) -> None:
    """Turns on dropout and the norms' batch statistics, except in a frozen backbone."""
    model.train(not options.freeze)
    head_of(model).train()


def make_scaler(options: Options) -> torch.amp.GradScaler:
    """Returns the scaler that keeps float16's small gradients from vanishing; else an idle one."""
    device = torch.device(options.device).type
    return torch.amp.GradScaler(device, enabled=options.precision == "fp16")


@dataclass
class EarlyStopping:
    """Watches the validation figures, and keeps the weights of the best epoch.

    Attributes:
        patience: epochs without a better figure until training stops; None never stops.
        monitor: "loss", where less is better, or "accuracy", of equal ones that with less loss.
        best: the best figure so far.
        loss: the validation loss of the epoch that had it.
        epoch: that epoch.
        weights: a copy of the model's state from then.
        waited: epochs since.
    """

    patience: int | None
    monitor: str
    best: float | None = None
    loss: float = math.inf
    epoch: int = 0
    weights: dict[str, Tensor] | None = None
    waited: int = 0

    def update(self, epoch: int, figures: dict[str, float], model: nn.Module) -> None:
        """Takes an epoch's figures, and the model that has them."""
        figure, loss = figures[self.monitor], figures.get("loss", 0.0)
        if self.best is None:
            better = not math.isnan(figure)
        elif figure == self.best:
            better = loss < self.loss
        else:
            better = (figure < self.best) == (self.monitor == "loss") and not math.isnan(figure)
        if better:
            self.best, self.loss, self.epoch, self.waited = figure, loss, epoch, 0
            self.weights = {name: _copy(value) for name, value in model.state_dict().items()}
        else:
            self.waited += 1

    @property
    def exhausted(self) -> bool:
        """Whether training should stop."""
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Returns what `load_state_dict` takes."""
        names = ("best", "loss", "epoch", "weights", "waited")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        for name in self.state_dict():
            setattr(self, name, state[name])


def _copy(value: Tensor) -> Tensor:
    """Returns a copy that takes no memory of an accelerator, or of a part its own device's."""
    return copy.deepcopy(value) if strategy.is_cut(value) else value.detach().to("cpu", copy=True)
