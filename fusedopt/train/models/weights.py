"""Pretrained weights: from a file into a model whose head or input channels may be others."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fusedopt.train.models.parts import ModelError, head_name

# Mean and standard deviation of each channel, with which torchvision trains on ImageNet.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Second classifiers that GoogLeNet and Inception have for training from scratch.
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def first_convolution(model: nn.Module) -> str:
    """Returns the name of the first convolution."""
    return next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Returns the state dict in a file, read without running what the file may hold.

    Raises:
        ModelError: the file can't be read, or holds something else.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"pretrained: cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # torch.load raises whatever the damage makes it stumble over
        raise ModelError(f"pretrained: {path} is damaged, or not a state dict") from error
    if not isinstance(weights, dict) or not all(isinstance(x, Tensor) for x in weights.values()):
        raise ModelError(f"pretrained: {path} is not a state dict")
    return weights


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Loads a state dict; a head for another number of classes stays as it was initialised.

    Where the model takes gray images and the weights are for more channels, the first convolution
    gets their sum: it then gives what it would for an image with equal channels.

    Args:
        model: changed in place, or not at all.
        weights: as `model.state_dict()` has them.
        source: where they come from, for messages.

    Raises:
        ModelError: the weights are those of another model.
    """
    own = model.state_dict()
    given = {name: x for name, x in weights.items() if not name.startswith(AUXILIARY)}
    first = f"{first_convolution(model)}.weight"
    if first in given and given[first].dim() == 4 and own[first].shape[1] == 1:
        given[first] = given[first].sum(1, keepdim=True)
    head = head_name(model)
    head_keys = {f"{head}.weight", f"{head}.bias"} & own.keys()
    if any(name in given and given[name].shape != own[name].shape for name in head_keys):
        given = {name: x for name, x in given.items() if name not in head_keys} | {
            name: own[name] for name in head_keys
        }
    for name in sorted(own.keys() ^ given.keys()):
        where = "not in the model" if name in given else "missing"
        raise ModelError(f"pretrained: {source} is for another model: {name} is {where}")
    for name, value in given.items():
        if value.shape != own[name].shape:
            shapes = f"{tuple(value.shape)}, and the model's {tuple(own[name].shape)}"
            raise ModelError(f"pretrained: {source} doesn't fit: its {name} has shape {shapes}")
    model.load_state_dict(given)
