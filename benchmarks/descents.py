"""Two functions of two variables, and how the optimizers descend on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import StepLR

STEPS = 100
DECAY_EVERY, DECAY = 20, 0.5


@dataclass(frozen=True, eq=False)
class Function:
    """A function to be minimised.

    Attributes:
        name: What result files call it.
        formula: For titles, in TeX.
        value: The function, of two tensors of one shape.
        start: Where a descent begins.
        minimum: Its least value.
    """

    name: str
    formula: str
    value: Callable[[Tensor, Tensor], Tensor]
    start: tuple[float, float]
    minimum: float


def bowl(x: Tensor, y: Tensor) -> Tensor:
    """A long bowl, ten times steeper in x than in y."""
    return 20 * x**2 + 2 * y**2


def waves(x: Tensor, y: Tensor) -> Tensor:
    """A bowl with waves in y: 10 Im[exp(5yj)] is 10 sin(5y)."""
    return 2 * x**2 + 10 * y**2 + 10 * torch.sin(5 * y)


FUNCTIONS = {
    "bowl": Function("bowl", "$20x^2+2y^2$", bowl, (-2.0, 2.5), 0.0),
    "waves": Function(
        "waves", "$2x^2+10y^2+10\\,\\mathrm{Im}[e^{5yj}]$", waves, (-2.0, 2.5), -9.0862243987
    ),
}


@dataclass(frozen=True, eq=False)
class Descent:
    """An optimizer with options, one panel of the figures.

    Attributes:
        name: What tables and result files call it.
        cls: The class' name in torch.optim and in fusedopt.
        lr: The learning rate on each of `FUNCTIONS`.
        options: Further keyword arguments.
        decays: Halve the learning rate every `DECAY_EVERY` steps.
    """

    name: str
    cls: str
    lr: Mapping[str, float]
    options: Mapping[str, Any] = field(default_factory=dict)
    decays: bool = False

    def make(self, module: ModuleType, params: Any, **more: Any) -> Optimizer:
        """Makes fusedopt's optimizer, or torch.optim's."""
        return getattr(module, self.cls)(params, **self.options, **more)


_MOMENTUM = {"momentum": 0.9}
_ALL = (
    Descent("SGD", "SGD", {"bowl": 0.049, "waves": 0.007}),
    Descent("SGD, decayed", "SGD", {"bowl": 0.049, "waves": 0.007}, decays=True),
    Descent("SGD with momentum", "SGD", {"bowl": 0.01, "waves": 0.003}, _MOMENTUM),
    Descent("SGD with momentum, decayed", "SGD", {"bowl": 0.01, "waves": 0.003}, _MOMENTUM, True),
    Descent("Adagrad", "Adagrad", {"bowl": 1.0, "waves": 1.0}),
    Descent("RMSprop", "RMSprop", {"bowl": 0.1, "waves": 0.1}),
    Descent("Adadelta", "Adadelta", {"bowl": 1.0, "waves": 1.0}, {"eps": 1e-3}),
    Descent("Adam", "Adam", {"bowl": 0.3, "waves": 0.3}),
    Descent("AdamW", "AdamW", {"bowl": 0.3, "waves": 0.3}, {"weight_decay": 0.3}),
)
DESCENTS = {descent.name: descent for descent in _ALL}
# Those with a learning rate of their own: Adadelta's is a factor of a step that it finds itself.
TOLERANCES = ("SGD", "SGD with momentum", "Adagrad", "RMSprop", "Adam", "AdamW")
RANGES = (5.0, 0.5)


def trajectory(function: Function, descent: Descent, module: ModuleType, steps: int) -> Tensor:
    """Follows one optimizer, as a user would write it.

    Args:
        function: What is minimised.
        descent: The optimizer and its options.
        module: torch.optim or fusedopt.
        steps: How many.

    Returns:
        The points, float64, of shape (steps + 1, 2), the start among them.
    """
    point = Parameter(torch.tensor(function.start, dtype=torch.float64))
    optimizer = descent.make(module, [point], lr=descent.lr[function.name])
    scheduler = StepLR(optimizer, DECAY_EVERY, DECAY) if descent.decays else None
    points = [point.detach().clone()]
    for _ in range(steps):
        optimizer.zero_grad()
        function.value(*point).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        points.append(point.detach().clone())
    return torch.stack(points)


def groups(
    descent: Descent, module: ModuleType, points: Tensor, rates: Sequence[float]
) -> Optimizer:
    """Makes one optimizer with a parameter group for each learning rate.

    Args:
        descent: The optimizer and its options.
        module: torch.optim or fusedopt.
        points: One row per rate; its rows become the parameters.
        rates: The learning rates.
    """
    params = [{"params": [Parameter(row)], "lr": lr} for row, lr in zip(points, rates, strict=True)]
    return descent.make(module, params)


def final_losses(
    function: Function, descent: Descent, module: ModuleType, rates: Sequence[float], steps: int
) -> Tensor:
    """Descends with many learning rates at once, each in a parameter group of one optimizer.

    Returns:
        How far above the minimum each ends, float64, one per rate; inf or NaN where it diverged.
    """
    points = torch.tensor(function.start, dtype=torch.float64).repeat(len(rates), 1)
    gradients = torch.empty_like(points)
    optimizer = groups(descent, module, points, rates)
    for group, gradient in zip(optimizer.param_groups, gradients, strict=True):
        group["params"][0].grad = gradient  # a view: all are written at once below
    for _ in range(steps):
        leaf = points.detach().clone().requires_grad_()
        function.value(*leaf.unbind(1)).sum().backward()
        gradients.copy_(leaf.grad)
        optimizer.step()
    return function.value(*points.unbind(1)) - function.minimum
