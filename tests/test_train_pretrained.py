"""Pretrained weights in the training script's networks, and torchvision's classifiers."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from fusedopt.train.models import ModelError, make_model


def filled(name: str, classes: int, channels: int, size: int) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return make_model(name, classes, channels, size).state_dict()


def test_pretrained_weights_with_another_head_and_gray_images(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    weights = filled("resnet20", 10, 3, 32)
    torch.save(weights, path)
    same = make_model("resnet20", 10, 3, 32, pretrained=path).state_dict()
    assert all(torch.equal(same[name], weights[name]) for name in weights)

    torch.manual_seed(1)
    other = make_model("resnet20", 4, 1, 16, pretrained=str(path))
    torch.manual_seed(1)
    fresh = make_model("resnet20", 4, 1, 16)
    assert torch.equal(other.fc.weight, fresh.fc.weight)
    assert torch.equal(other.stage3[2].conv2.weight, weights["stage3.2.conv2.weight"])
    gray = torch.randn(2, 1, 16, 16)
    old = make_model("resnet20", 10, 3, 16, pretrained=path)
    torch.testing.assert_close(other.conv(gray), old.conv(gray.expand(-1, 3, -1, -1)))


def test_unfit_pretrained_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"

    def refused(model: str = "resnet20", channels: int = 3) -> str:
        with pytest.raises(ModelError) as info:
            make_model(model, 10, channels, 32, pretrained=path)
        return str(info.value)

    assert refused() == f"pretrained: cannot read {path}: No such file or directory"
    path.write_bytes(b"not a checkpoint")
    assert refused() == f"pretrained: {path} is damaged, or not a state dict"
    torch.save([1, 2], path)
    assert refused() == f"pretrained: {path} is not a state dict"
    weights = filled("resnet20", 10, 3, 32)
    torch.save(weights, path)
    assert refused("resnet56").endswith("is for another model: stage1.3.bn1.bias is missing")
    assert "conv.weight has shape (16, 3, 3, 3), and the model's (16, 2, 3, 3)" in refused(
        channels=2
    )
    torch.save(weights | {"more": torch.zeros(1)}, path)
    assert refused().endswith("is for another model: more is not in the model")


def test_weights_for_imagenet_do_not_fit_the_form_for_small_images(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(filled("resnet18", 10, 3, 64), path)
    make_model("resnet18", 10, 3, 64, pretrained=path)
    with pytest.raises(ModelError, match="For images below 64 pixels resnet18 has another form"):
        make_model("resnet18", 10, 3, 32, pretrained=path)


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for torchvision, which may not be installed: what is used of `models`."""

    class SmallNet(nn.Sequential):
        def __init__(self, num_classes: int = 1000) -> None:
            super().__init__(
                nn.Conv2d(3, 4, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                nn.Linear(4, num_classes),
            )  # fmt: skip

    def get_model(name: str, weights: str | None = None, **arguments: int) -> nn.Module:
        model = SmallNet(**arguments)
        if weights == "DEFAULT":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(0.5)
        return model

    package, models = ModuleType("torchvision"), ModuleType("torchvision.models")
    models.list_models = lambda module: ["smallnet"]
    models.get_model = get_model
    package.models = models
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    return models


@pytest.mark.usefixtures("torchvision")
def test_torchvisions_classifiers() -> None:
    model = make_model("torchvision:smallnet", 7, 1, 8)
    assert model.training and model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
    model = make_model("torchvision:smallnet", 7, 1, 8, pretrained="default")
    assert (model[0].weight == 1.5).all() and model[3].weight.std() > 0
    model = make_model("torchvision:smallnet", 1000, 3, 8, pretrained="default")
    assert (model[3].weight == 0.5).all()
    with pytest.raises(ModelError, match="torchvision has no classifier 'smalnet'; it has smalln"):
        make_model("torchvision:smalnet", 7, 1, 8)
    with pytest.raises(ModelError, match="torchvision:smallnet can't take images of 2 pixels: "):
        make_model("torchvision:smallnet", 7, 1, 2)


def test_torchvision_missing_or_broken(
    torchvision: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(name: str, weights: str | None = None, **arguments: int) -> nn.Module:
        if weights:
            raise OSError("no route to host")
        return nn.Sequential(nn.Conv2d(3, 4, 3))

    torchvision.get_model = unreachable
    with pytest.raises(ModelError, match="weights of smallnet can't be had: no route to host"):
        make_model("torchvision:smallnet", 7, 3, 8, pretrained="default")
    monkeypatch.delitem(sys.modules, "torchvision.models")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModelError, match="needs torchvision, which is not installed"):
        make_model("torchvision:resnet18", 7, 1, 8)
