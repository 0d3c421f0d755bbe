"""Makes a model by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import nn

from fusedopt.train.models import external
from fusedopt.train.models.alexnet import AlexNet
from fusedopt.train.models.cifar_resnet import CifarResNet
from fusedopt.train.models.initial import initialise
from fusedopt.train.models.lenet import LeNet
from fusedopt.train.models.parts import ModelError
from fusedopt.train.models.resnet import ResNet
from fusedopt.train.models.small import SMALL
from fusedopt.train.models.vgg import VGG
from fusedopt.train.models.weights import IMAGENET, load_weights, read_weights

# Each takes num_classes, in_channels, image_size.
FACTORIES: dict[str, Callable[[int, int, int], nn.Module]] = {
    "lenet": LeNet,
    "alexnet": AlexNet,
    "vgg11": partial(VGG, 11),
    "vgg16": partial(VGG, 16),
    "resnet18": partial(ResNet, 18),
    "resnet34": partial(ResNet, 34),
    "resnet50": partial(ResNet, 50),
    "resnet20": lambda classes, channels, _: CifarResNet(20, classes, channels),
    "resnet56": lambda classes, channels, _: CifarResNet(56, classes, channels),
}
MODELS = tuple(FACTORIES)
HAVE_SMALL_FORM = ("alexnet", "vgg11", "vgg16", "resnet18", "resnet34", "resnet50")
TORCHVISION = "torchvision:"


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
        name: one of MODELS, or "torchvision:NAME".
        num_classes: number of outputs.
        in_channels: channels of an input image.
        image_size: height and width of an input image. Below 64 pixels, AlexNet, VGG and ResNet-18
            to 50 get a form for small images.
        init: "he" or "xavier"; None for what each paper or torch does.
        pretrained: a file with a state dict, as torchvision publishes them, or "default" for
            torchvision's own choice. A head for another number of classes stays a new one.

    Returns:
        A module from images (N, in_channels, image_size, image_size), floating point, to logits
        (N, num_classes).

    Raises:
        ModelError: there is no such model, or it can't be made as asked.
    """
    for argument, value in {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "image_size": image_size,
    }.items():
        if value < 1:
            raise ModelError(f"{argument} must be at least 1, not {value}")
    if name.startswith(TORCHVISION):
        factory = partial(external.make, name.removeprefix(TORCHVISION))
    elif name in FACTORIES:
        factory = FACTORIES[name]
    else:
        raise ModelError(f"there is no model {name!r}; there are {', '.join(MODELS)}")
    model = factory(num_classes, in_channels, image_size)
    if init is not None:
        initialise(model, init)
    if pretrained is not None:
        _load_pretrained(model, name, pretrained, image_size)
    return model


def pretrained_statistics(
    name: str, pretrained: str | Path, in_channels: int
) -> tuple[external.Statistic, external.Statistic]:
    """Returns mean and deviation of the images that pretrained weights were trained with.

    Args:
        name: of the model.
        pretrained: as `make_model` takes it. Weights in a file are taken for torchvision's, which
            are trained on ImageNet.
        in_channels: channels of an image. For a gray one they are the means over the channels.

    Returns:
        Mean and standard deviation of each channel, in 0..1.

    Raises:
        ModelError: torchvision is missing.
    """
    found = None
    if pretrained == "default" and name.startswith(TORCHVISION):
        found = external.default_statistics(name.removeprefix(TORCHVISION))
    mean, std = found or IMAGENET
    if in_channels != len(mean):
        mean, std = ((sum(values) / len(values),) * in_channels for values in (mean, std))
    return mean, std


def _load_pretrained(model: nn.Module, name: str, pretrained: str | Path, image_size: int) -> None:
    if pretrained != "default":
        weights = read_weights(Path(pretrained))
    elif name.startswith(TORCHVISION):
        weights = external.default_weights(name.removeprefix(TORCHVISION))
    else:
        raise ModelError(f"pretrained: 'default' is for torchvision:{name}; name a file")
    try:
        load_weights(model, weights, str(pretrained))
    except ModelError as error:
        if name in HAVE_SMALL_FORM and image_size < SMALL:
            raise ModelError(
                f"{error}. For images below {SMALL} pixels {name} has another form than for"
                " ImageNet's"
            ) from error
        raise
