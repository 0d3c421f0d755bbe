"""RandAugment, mixup and CutMix, which torchvision has; here with a stand-in for it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("tensorboard", reason="the training script needs fusedopt[train]")

from test_train_resume import assert_same_run
from train_runs import SMALL, error_of, no_chart, short_measurement, train  # noqa: F401

from fusedopt.train import loop
from fusedopt.train.augment import make_augmentation
from fusedopt.train.data import load_data


class Mix:
    """As torchvision's: of a batch, each image with the one before, by a share from torch."""

    def __init__(self, *, alpha: float, num_classes: int) -> None:
        self.alpha, self.classes = alpha, num_classes

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        share = torch.rand(1).item()
        hot = F.one_hot(labels, self.classes).float()
        mixed = [share * x + (1 - share) * x.roll(1, 0) for x in (images, hot)]
        return mixed[0], mixed[1]


class RandAugment:
    def __call__(self, image: Tensor) -> Tensor:
        assert image.dtype == torch.uint8 and image.ndim == 3
        return image + torch.randint(1, 3, (1,)).to(torch.uint8)


class RandomChoice:
    def __init__(self, transforms: list[Any]) -> None:
        self.transforms = transforms

    def __call__(self, *given: Tensor) -> Any:
        return self.transforms[int(torch.randint(len(self.transforms), (1,)))](*given)


@pytest.fixture
def v2(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    package, transforms = ModuleType("torchvision"), ModuleType("torchvision.transforms")
    module = ModuleType("torchvision.transforms.v2")
    module.MixUp = type("MixUp", (Mix,), {})
    module.CutMix = type("CutMix", (Mix,), {})
    module.RandAugment, module.RandomChoice = RandAugment, RandomChoice
    for part in (package, transforms, module):
        monkeypatch.setitem(sys.modules, part.__name__, part)
    return module


@pytest.mark.usefixtures("v2")
@pytest.mark.parametrize("names", ["mixup", "cutmix", "crop,randaugment,mixup,cutmix"])
def test_training_sees_mixed_labels_and_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    targets: list[Tensor] = []
    cross_entropy = F.cross_entropy

    def spy(logits: Tensor, labels: Tensor, *given: Any, **more: Any) -> Tensor:
        targets.append(labels)
        return cross_entropy(logits, labels, *given, **more)

    options = (*SMALL, "--augment", names, "--label-smoothing", 0.1, "--no-cost", "--epochs", 2)
    with monkeypatch.context() as patch:
        patch.setattr(F, "cross_entropy", spy)
        train(*options, "--out", tmp_path / "whole")
    training = [labels for labels in targets if labels.ndim == 2]
    assert len(training) == 8 and len(targets) == 8 + 2 * 1 + 2  # validation and test are plain
    assert all((labels.sum(1) - 1).abs().max() < 1e-6 for labels in training)
    assert ((training[0] > 0).sum(1) == 2).any()

    batches, show = iter(range(99)), loop._show
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_show", lambda *a: show(*a) or (next(batches) == 5 and 1 / 0))
        with pytest.raises(ZeroDivisionError):
            train(*options, "--checkpoint-every", 1, "--out", tmp_path / "parts")
    train("--resume", tmp_path / "parts", "--checkpoint-every", 1)
    models = [torch.load(tmp_path / name / "model.pt")["model"] for name in ("whole", "parts")]
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    assert_same_run(tmp_path / "parts", tmp_path / "parts")


@pytest.mark.usefixtures("v2")
def test_randaugment_changes_each_image_in_training_only() -> None:
    splits = load_data("digits", root=Path("."), seed=0)
    augment, plain = (make_augmentation(name, splits) for name in ("randaugment", "none"))
    images = splits.train.images[:40] // 2
    changed = (augment.train()(images) - plain(images)).flatten(1)
    assert torch.allclose(changed, changed[:, :1], atol=1e-5)  # all pixels of an image alike
    assert len(changed[:, 0].mul(1000).round().unique()) == 2  # images otherwise
    assert torch.equal(augment.eval()(images), plain(images))


def test_torchvision_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    for name in ("mixup", "cutmix", "randaugment"):
        line = error_of(capsys, *SMALL, "--augment", f"crop,{name}", "--out", tmp_path / "out")
        assert line.endswith(
            f"error: --augment: {name} needs torchvision, which is not installed: pip install"
            " torchvision"
        )
    assert not list(tmp_path.iterdir())


def test_torchvision_that_is_for_another_torch(
    v2: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    del v2.MixUp
    line = error_of(capsys, *SMALL, "--augment", "mixup")
    assert "error: --augment: mixup: torchvision can't be used: " in line


@pytest.mark.usefixtures("v2")
def test_mixed_labels_have_no_class_weights(capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, *SMALL, "--augment", "mixup", "--class-weights", "balanced")
    assert line.endswith(
        "--class-weights: labels that mixup or cutmix have mixed can't be weighted; --sampler"
        " balanced shows rare classes as often as others"
    )
