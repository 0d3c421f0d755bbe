"""Makes a model by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from fusedopt.train.models.cifar_resnet import CifarResNet
from fusedopt.train.models.initial import initialise
from fusedopt.train.models.lenet import LeNet
from fusedopt.train.models.parts import ModelError

# Each takes num_classes, in_channels, image_size.
FACTORIES: dict[str, Callable[[int, int, int], nn.Module]] = {
    "lenet": LeNet,
    "resnet20": lambda classes, channels, size: CifarResNet(20, classes, channels),
    "resnet56": lambda classes, channels, size: CifarResNet(56, classes, channels),
}
MODELS = tuple(FACTORIES)


def make_model(
    name: str,
    num_classes: int,
    in_channels: int,
    image_size: int,
    *,
    init: str | None = None,
    pretrained: str | Path | None = None,
) -> nn.Module:
    """Returns a model by name, drawn from torch's global generator.

    Args:
        name: one of MODELS.
        num_classes: number of outputs.
        in_channels: channels of an input image.
        image_size: height and width of an input image.
        init: "he" or "xavier"; None for what each paper or torch does.
        pretrained: None so far.

    Returns:
        A module from images (N, in_channels, image_size, image_size), floating point, to logits
        (N, num_classes).

    Raises:
        ModelError: there is no such model, or it can't be made as asked.
    """
    if name not in FACTORIES:
        raise ModelError(f"there is no model {name!r}; there are {', '.join(MODELS)}")
    if pretrained is not None:
        raise ModelError("pretrained weights are not supported yet")
    model = FACTORIES[name](num_classes, in_channels, image_size)
    return model if init is None else initialise(model, init)
