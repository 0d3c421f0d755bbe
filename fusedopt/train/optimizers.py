"""Every optimizer's options, from its one description, and defaults that train each model."""

from __future__ import annotations

import inspect
from typing import Any

import fusedopt
from fusedopt import _C

CLASSES = {name.lower(): name for name in _C.optimizers()}


def _options_of(name: str) -> dict[str, Any]:
    """Returns the options of a class that change its formula, and the defaults that it has.

    All but the learning rate, which depends on the model here.
    """
    described = _C.optimizers()[name]
    known = {*described["options"], *described["filled_early"].values()} - {"lr"}
    parameters = inspect.signature(getattr(fusedopt, name)).parameters.values()
    return {p.name: p.default for p in parameters if p.name in known}


OPTIONS = {optimizer: _options_of(name) for optimizer, name in CLASSES.items()}

# What each optimizer gets where the command line doesn't say otherwise.
DEFAULTS: dict[str, dict[str, float]] = {
    "sgd": {"lr": 0.05, "weight_decay": 5e-4, "momentum": 0.9},
    "adagrad": {"lr": 0.02, "weight_decay": 0.0},
    "rmsprop": {"lr": 1e-3, "weight_decay": 0.0, "momentum": 0.0},
    "adadelta": {"lr": 1.0, "weight_decay": 0.0},
    "adam": {"lr": 3e-3, "weight_decay": 0.0},
    "adamw": {"lr": 3e-3, "weight_decay": 1e-2},
    "adamax": {"lr": 3e-3, "weight_decay": 0.0},
    "radam": {"lr": 5e-3, "weight_decay": 0.0},
    "lion": {"lr": 1e-3, "weight_decay": 1e-2},
    "asgd": {"lr": 0.2, "weight_decay": 0.0},
}
for _optimizer, _name in CLASSES.items():  # the others: what the class says
    _parameters = inspect.signature(getattr(fusedopt, _name)).parameters
    DEFAULTS.setdefault(
        _optimizer,
        {key: _parameters[key].default for key in ("lr", "weight_decay") if key in _parameters},
    )

# Networks without norms, or with large linear layers behind them, need smaller steps: AlexNet stays
# at chance with Adam's 3e-3, and VGG falls behind. Transformers and ConvNeXt have layer norms only.
SMALL_STEPS = ("alexnet", "vgg", "squeezenet", "vit_", "swin", "maxvit", "convnext")
_SMALLER = {
    "adagrad": 0.002,
    "rmsprop": 1e-4,
    "adadelta": 0.3,
    "adam": 3e-4,
    "adamw": 3e-4,
    "adamax": 3e-4,
    "radam": 1e-3,
    "nadam": 3e-4,
    "lion": 1e-4,
    "asgd": 0.1,
    "rprop": 1e-4,
}


def learning_rate(model: str, optimizer: str) -> float:
    """Returns the learning rate with which an optimizer trains a model, if none is given.

    Args:
        model: as `make_model` takes it.
        optimizer: a key of DEFAULTS.
    """
    if model.removeprefix("torchvision:").startswith(SMALL_STEPS):
        return _SMALLER.get(optimizer, DEFAULTS[optimizer]["lr"])
    return DEFAULTS[optimizer]["lr"]


def has_option(optimizer: str, option: str) -> bool:
    """Returns whether an optimizer has an option."""
    return option in OPTIONS.get(optimizer, {}) or option in DEFAULTS[optimizer]


def default_of(optimizer: str, option: str) -> Any:
    """Returns what an optimizer's option is where nothing is given."""
    own = DEFAULTS[optimizer]
    return own[option] if option in own else OPTIONS[optimizer][option]


def having(option: str) -> list[str]:
    """Returns the optimizers that have an option."""
    return [optimizer for optimizer in DEFAULTS if has_option(optimizer, option)]


ALL_OPTIONS = tuple(dict.fromkeys(name for own in OPTIONS.values() for name in own))


def learning_rates() -> str:
    """Returns a table of the learning rates, for --help."""
    lines = [("optimizer", "most models", ", ".join(SMALL_STEPS).replace("_", ""))]
    lines += [
        (optimizer, *(f"{learning_rate(model, optimizer):g}" for model in ("resnet20", "alexnet")))
        for optimizer in DEFAULTS
    ]
    rows = "\n".join(f"  {a:<11}{b:<13}{c}" for a, b, c in lines)
    return f"learning rates, where --lr gives none:\n{rows}"
