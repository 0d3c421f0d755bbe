"""torchvision's classifiers, where it is installed."""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType

import torch
from torch import Tensor, nn

from fusedopt.train.models.parts import ModelError
from fusedopt.train.models.weights import first_convolution

Statistic = tuple[float, ...]  # of each channel, in 0..1


def _models() -> ModuleType:
    try:
        return importlib.import_module("torchvision.models")
    except ModuleNotFoundError as error:
        raise ModelError("torchvision:… needs torchvision, which is not installed") from error
    except Exception as error:  # a torchvision built for another torch: RuntimeError and others
        raise ModelError(f"torchvision can't be imported: {error}") from error


def make(name: str, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Returns a freshly initialised classifier of torchvision's, without auxiliary classifiers.

    Args:
        name: as in `torchvision.models`.
        num_classes: number of outputs.
        in_channels: channels of an input image; where they aren't 3, the first convolution is a
            new one.
        image_size: height and width of an input image.

    Raises:
        ModelError: torchvision is missing or has no such classifier, or the classifier can't take
            such images.
    """
    models = _models()
    names = models.list_models(module=models)
    if name not in names:
        close = difflib.get_close_matches(name, names) or names
        raise ModelError(f"torchvision has no classifier {name!r}; it has {', '.join(close)}")
    # Vision transformers must know the size; the other networks take what comes.
    size = {"image_size": image_size} if name.startswith("vit_") else {}
    aux = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    try:
        model = models.get_model(name, num_classes=num_classes, **size, **aux)
    except Exception as error:
        raise ModelError(f"torchvision:{name}, {image_size} pixels: {error}") from error
    if in_channels != 3:
        _replace_first_convolution(model, in_channels)
    _try_out(model, name, in_channels, image_size)
    return model


def default_weights(name: str) -> dict[str, Tensor]:
    """Returns torchvision's own weights of a classifier, from its cache or its server.

    Raises:
        ModelError: they can't be had.
    """
    models = _models()
    try:
        return models.get_model(name, weights="DEFAULT").state_dict()
    except Exception as error:
        raise ModelError(f"torchvision's weights of {name} can't be had: {error}") from error


def default_statistics(name: str) -> tuple[Statistic, Statistic] | None:
    """Returns mean and deviation of the images of torchvision's own weights, where it says them."""
    models = _models()
    try:
        transforms = models.get_model_weights(name).DEFAULT.transforms()
        return tuple(transforms.mean), tuple(transforms.std)
    except (AttributeError, TypeError, ValueError):
        return None


def _replace_first_convolution(model: nn.Module, in_channels: int) -> None:
    name = first_convolution(model)
    old = model.get_submodule(name)
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,
        old.stride,
        old.padding,
        bias=old.bias is not None,
    )
    model.set_submodule(name, new)


@torch.no_grad()
def _try_out(model: nn.Module, name: str, in_channels: int, image_size: int) -> None:
    """Raises a ModelError, now rather than in the first step, where images are too small."""
    was_training = model.training
    try:
        model.eval()(torch.zeros(1, in_channels, image_size, image_size))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"torchvision:{name} can't take images of {image_size} pixels: {reason}"
        ) from error
    model.train(was_training)
