"""Pretrained weights in the training script's networks, and torchvision's classifiers."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("tensorboard", reason="the training script needs fusedopt[train]")

from train_folder_files import SMALL_IMAGES, write_folder
from train_runs import SMALL, no_chart, train  # noqa: F401

from fusedopt.train.models import ModelError, make_model, pretrained_statistics


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


def saved_statistics(folder: Path) -> tuple[list[float], list[float]]:
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    return content["mean"], content["std"]


def test_images_are_normalised_as_for_the_pretrained_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in a run that is resumed, and in one that begins with its network."""
    torch.save(filled("lenet", 10, 3, 16), tmp_path / "lenet.pth")
    root = write_folder(tmp_path / "data")
    options = ("--data", f"folder:{root}", *SMALL_IMAGES, "--epochs", 1, "--no-cost")
    train(*options, "--pretrained", tmp_path / "lenet.pth", "--out", tmp_path / "a")
    imagenet = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    assert saved_statistics(tmp_path / "a") == imagenet
    assert "images are normalised with ImageNet's mean and deviation" in capsys.readouterr().out
    train("--resume", tmp_path / "a", "--epochs", 2)
    assert saved_statistics(tmp_path / "a") == imagenet
    train(*options, "--init", tmp_path / "a", "--out", tmp_path / "b")
    assert saved_statistics(tmp_path / "b") == imagenet
    assert f"normalised with the mean and deviation of {tmp_path / 'a'}" in capsys.readouterr().out
    train(*options, "--out", tmp_path / "c")
    assert saved_statistics(tmp_path / "c") != imagenet


def test_gray_images_are_normalised_with_the_channels_means(tmp_path: Path) -> None:
    torch.save(filled("resnet20", 10, 3, 16), tmp_path / "weights.pth")
    options = ("--model", "resnet20", *SMALL, "--epochs", 1, "--no-cost")
    train(*options, "--pretrained", tmp_path / "weights.pth", "--out", tmp_path / "run")
    mean, std = saved_statistics(tmp_path / "run")
    assert mean == pytest.approx([0.449]) and std == pytest.approx([0.226])
    content = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    content["mean"], content["std"] = [0.3], [0.3]  # as a run of an earlier version has them
    torch.save(content, tmp_path / "run" / "checkpoint.pt")
    train("--resume", tmp_path / "run", "--epochs", 2)
    assert saved_statistics(tmp_path / "run") == ([0.3], [0.3])


def test_torchvisions_own_weights_say_how_images_are_normalised(
    torchvision: ModuleType, tmp_path: Path
) -> None:
    transforms = SimpleNamespace(mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.1])
    default = SimpleNamespace(transforms=lambda: transforms)
    torchvision.get_model_weights = lambda name: SimpleNamespace(DEFAULT=default)
    assert pretrained_statistics("torchvision:smallnet", "default", 3) == (
        (0.5, 0.4, 0.3), (0.2, 0.2, 0.1),
    )  # fmt: skip
    torchvision.get_model_weights = lambda name: SimpleNamespace(DEFAULT=None)  # without transforms
    assert pretrained_statistics("torchvision:smallnet", "default", 3)[0] == (0.485, 0.456, 0.406)
