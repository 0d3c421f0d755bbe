"""The training script's networks: layouts, initial weights, heads and depths."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from fusedopt.train.models import (
    MODELS,
    ModelError,
    depth_of_parameters,
    head_of,
    make_model,
    replace_head,
)
from fusedopt.train.models.initial import initialise


def without_values(name: str, classes: int, channels: int, size: int) -> nn.Module:
    """A model that has shapes, but no values: neither memory nor time for them."""
    with torch.device("meta"):
        return make_model(name, classes, channels, size)


# ImageNet's: num_params of torchvision's alexnet, vgg11_bn, vgg16_bn, resnet18, 34, 50, on its
# page "Models and pre-trained weights". The CIFAR ResNets': 0.27 M and 0.85 M in table 6 of the
# paper. LeNet's: (3*25+1)*6 + (6*25+1)*16 + 401*120 + 121*84 + 85*10.
@pytest.mark.parametrize(
    ("name", "classes", "size", "parameters"),
    [
        ("alexnet", 1000, 224, 61_100_840),
        ("vgg11", 1000, 224, 132_868_840),
        ("vgg16", 1000, 224, 138_365_992),
        ("resnet18", 1000, 224, 11_689_512),
        ("resnet34", 1000, 224, 21_797_672),
        ("resnet50", 1000, 224, 25_557_032),
        ("resnet20", 10, 32, 269_722),
        ("resnet56", 10, 32, 853_018),
        ("lenet", 10, 32, 62_006),
    ],
)
def test_parameters_are_as_many_as_published(
    name: str, classes: int, size: int, parameters: int
) -> None:
    model = without_values(name, classes, 3, size)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_resnet50_has_torchvisions_layout() -> None:
    """Names and shapes of torchvision's checkpoints, written down from its documentation."""
    expected: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, norm: str, out: int, into: int, kernel: int) -> None:
        expected[f"{name}.weight"] = (out, into, kernel, kernel)
        expected.update({f"{norm}.{x}": (out,) for x in ("weight", "bias")})
        expected.update({f"{norm}.{x}": (out,) for x in ("running_mean", "running_var")})
        expected[f"{norm}.num_batches_tracked"] = ()

    convolution("conv1", "bn1", 64, 3, 7)
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for i in range(blocks):
            block = f"layer{stage + 1}.{i}"
            convolution(f"{block}.conv1", f"{block}.bn1", width, channels, 1)
            convolution(f"{block}.conv2", f"{block}.bn2", width, width, 3)
            convolution(f"{block}.conv3", f"{block}.bn3", 4 * width, width, 1)
            if i == 0:
                convolution(
                    f"{block}.downsample.0", f"{block}.downsample.1", 4 * width, channels, 1
                )
            channels = 4 * width
    expected |= {"fc.weight": (1000, 2048), "fc.bias": (1000,)}
    model = without_values("resnet50", 1000, 3, 224)
    assert {name: tuple(x.shape) for name, x in model.state_dict().items()} == expected
    assert [block.conv2.stride for block in model.layer2] == [(2, 2), (1, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 64)])
def test_all_sizes_of_images(name: str, channels: int, size: int) -> None:
    if name == "lenet" and size < 16:
        with pytest.raises(ModelError, match="at least 16 pixels, not 8"):
            make_model(name, 7, channels, size)
        return
    model = without_values(name, 7, channels, size)
    assert model(torch.empty(2, channels, size, size, device="meta")).shape == (2, 7)


def test_small_images_keep_their_pixels() -> None:
    """What the linear layers of AlexNet and VGG see, and the last stage of a ResNet."""
    images = torch.empty(2, 3, 32, 32, device="meta")
    assert without_values("alexnet", 10, 3, 32).features(images).shape == (2, 256, 4, 4)
    assert without_values("vgg11", 10, 3, 32).features(images).shape == (2, 512, 1, 1)
    assert without_values("vgg11", 10, 3, 8).features(images[..., :8, :8]).shape[2:] == (1, 1)
    resnet = without_values("resnet18", 10, 3, 32)
    assert resnet.layer1(resnet.maxpool(resnet.conv1(images))).shape == (2, 64, 32, 32)


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "resnet20"])
def test_training_reaches_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    model = make_model(name, 3, 1, 16)
    model(torch.randn(4, 1, 16, 16)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert not any((p.grad == 0).all() for n, p in model.named_parameters() if "weight" in n)


def layers(model: nn.Module) -> Iterator[tuple[nn.Module, int, int]]:
    """Each layer with weights, its fan-in and its fan-out."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            area = module.weight[0, 0].numel()
            yield module, area * module.weight.shape[1], area * module.weight.shape[0]


@pytest.mark.parametrize("name", ["lenet", "resnet18", "resnet56"])
@pytest.mark.parametrize("rule", ["he", "xavier"])
def test_initial_variances(name: str, rule: str) -> None:
    torch.manual_seed(0)
    for layer, fan_in, fan_out in layers(make_model(name, 10, 3, 32, init=rule)):
        variance = 2 / fan_in if rule == "he" else 2 / (fan_in + fan_out)
        # Relative standard deviation of a variance's estimate from n samples: sqrt((k - 1) / n),
        # with kurtosis k 3 of a normal and 1.8 of a uniform distribution. 5 of them.
        tolerance = 5 * math.sqrt((2 if rule == "he" else 0.8) / layer.weight.numel())
        square = layer.weight.square().mean().item()
        assert square == pytest.approx(variance, rel=tolerance)
        assert layer.bias is None or (layer.bias == 0).all()
        if rule == "xavier":
            assert layer.weight.abs().max() <= math.sqrt(3 * variance)


def test_what_the_rules_are_for() -> None:
    """He keeps the variance through ReLUs; Xavier halves it there, and keeps it without them."""
    torch.manual_seed(0)
    x = torch.randn(256, 256)

    def last_square(rule: str, relu: bool) -> float:
        stack = initialise(nn.Sequential(*(nn.Linear(256, 256) for _ in range(10))), rule)
        y = x
        for linear in stack:
            y = linear(y.relu() if relu else y)
        return y.square().mean().item()

    assert 0.5 < last_square("he", relu=True) < 2
    assert 0.5 < last_square("xavier", relu=False) < 2
    assert 0.5 < last_square("xavier", relu=True) * 2**10 < 2


def test_papers_initial_variances() -> None:
    """Without --init: He's rule with fan-out for convolutions with batch norm, 0.01 in VGG."""
    torch.manual_seed(0)
    for name in ("vgg11", "resnet18", "resnet20"):
        for layer, _, fan_out in layers(make_model(name, 10, 3, 32)):
            tolerance = 5 * math.sqrt(2 / layer.weight.numel())
            if isinstance(layer, nn.Conv2d):
                square = layer.weight.square().mean().item()
                assert square == pytest.approx(2 / fan_out, rel=tolerance)
            elif name == "vgg11":
                assert layer.weight.std().item() == pytest.approx(0.01, rel=tolerance)


# Depth of the head: as many layers or blocks come before it.
@pytest.mark.parametrize(
    ("name", "depth", "examples"),
    [
        ("lenet", 4, {"conv1.bias": 0, "conv2.weight": 1, "fc1.weight": 2, "fc2.bias": 3}),
        ("alexnet", 7, {"features.0.weight": 0, "features.10.bias": 4, "classifier.1.weight": 5}),
        ("vgg11", 10, {"features.0.bias": 0, "features.1.weight": 0, "features.4.weight": 1}),
        ("vgg16", 15, {"features.1.bias": 0, "classifier.3.weight": 14}),
        ("resnet18", 9, {"bn1.weight": 0, "layer1.0.conv1.weight": 1, "layer4.1.bn2.bias": 8}),
        ("resnet50", 17, {"conv1.weight": 0, "layer2.0.downsample.0.weight": 4}),
        ("resnet20", 10, {"bn.bias": 0, "stage1.0.bn1.weight": 1, "stage3.2.conv2.weight": 9}),
    ],
)
def test_head_and_depth(name: str, depth: int, examples: dict[str, int]) -> None:
    model = without_values(name, 10, 1, 16)
    depths = depth_of_parameters(model)
    assert list(depths) == [name for name, _ in model.named_parameters()]
    assert list(depths.values()) == sorted(depths.values())
    assert set(depths.values()) == set(range(depth + 1))
    assert {key: depths[key] for key in examples} == examples
    of_head = [model.get_parameter(name) for name in depths if depths[name] == depth]
    assert len(of_head) == 2 and all(map(operator.is_, of_head, head_of(model).parameters()))

    assert replace_head(model, 7) is model and head_of(model).out_features == 7
    assert model(torch.empty(2, 1, 16, 16, device="meta")).shape == (2, 7)


def test_depth_in_a_transformer() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.zeros(4))
            self.layers = nn.Sequential(*(nn.TransformerEncoderLayer(4, 1, 8) for _ in range(3)))
            self.ln = nn.LayerNorm(4)

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(4))
            self.patches = nn.Conv2d(3, 4, 2)
            self.encoder = Encoder()
            self.heads = nn.Sequential(nn.Linear(4, 2))

    depths = depth_of_parameters(Transformer())
    assert depths["token"] == depths["encoder.position"] == depths["patches.weight"] == 0
    assert depths["encoder.layers.2.norm1.weight"] == depths["encoder.ln.bias"] == 3
    assert depths["encoder.layers.0.linear1.bias"] == 1
    assert max(depths.values()) == depths["heads.0.weight"] == 4


def test_a_head_is_needed() -> None:
    with pytest.raises(ModelError, match="Sequential has no layer that could be its head"):
        head_of(nn.Sequential(nn.ReLU()))
    with pytest.raises(ModelError, match="num_classes must be at least 1, not 0"):
        replace_head(nn.Sequential(nn.Linear(2, 2)), 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet19", 10, 3, 32), "there is no model 'resnet19'; there are lenet, alexnet,"),
        (("resnet18", 0, 3, 32), "num_classes must be at least 1, not 0"),
        (("resnet18", 10, 0, 32), "in_channels must be at least 1, not 0"),
        (("resnet18", 10, 3, 0), "image_size must be at least 1, not 0"),
        (("resnet20", 10, 3, 32, "lecun"), "init must be one of he, xavier, not 'lecun'"),
        (("resnet20", 10, 3, 32, None, "default"), "'default' is for torchvision:resnet20; name"),
    ],
)
def test_bad_arguments(arguments: tuple, message: str) -> None:
    names = ("name", "num_classes", "in_channels", "image_size", "init", "pretrained")
    with pytest.raises(ModelError, match=message):
        make_model(**dict(zip(names, arguments, strict=False)))
