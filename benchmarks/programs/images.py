"""Networks for images, on scikit-learn's digits: a vision transformer, ResNet-20 and ResNet-50."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks.programs.program import Phase, Program, Run, Side, shortened
from benchmarks.programs.supervised import accuracy, evaluate, shuffled, train

CLASSES = 10


class VisionTransformer(nn.Module):
    """Dosovitskiy et al., An Image is Worth 16x16 Words, 2020, for images of 8 x 8 pixels."""

    def __init__(self, width: int = 64, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, kernel_size=2, stride=2)
        self.place = nn.Parameter(torch.randn(16, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(width)
        self.encoder = nn.TransformerEncoder(layer, layers, norm, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the classes, for each of (batch, 1, 8, 8) images."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.place
        return self.head(self.encoder(tokens).mean(dim=1))


@cache
def _digits(size: int) -> tuple[Tensor, ...]:
    """Images and labels of training, and of the test."""
    from fusedopt.train.augment import Normalize
    from fusedopt.train.data import load_data

    data = load_data("digits", root=Path("data"), seed=0, image_size=size)
    normalize = Normalize(data.mean, data.std)
    return (
        normalize(data.train.images),
        data.train.labels,
        normalize(data.test.images),
        data.test.labels,
    )


def _resnet(name: str, size: int) -> nn.Module:
    from fusedopt.train.models import make_model

    return make_model(name, CLASSES, 1, size)


def _vit(side: Side, seed: int, scale: float) -> Run:
    """As timm trains them: AdamW, clipping and a moving average."""
    images, labels, *test = _digits(8)
    torch.manual_seed(seed)
    model, steps = VisionTransformer(), shortened(200, scale)
    phase = Phase(side, "AdamW", model, limit=1.0, decay=0.98, lr=1e-3, weight_decay=0.05)
    scheduler = CosineAnnealingLR(phase.optimizer, steps)
    batches = shuffled(images, labels, 32, steps, seed)
    return Run(
        lambda: train(model, batches, functional.cross_entropy, phase, scheduler),
        lambda: evaluate(phase.trained, *test, accuracy),
    )


def _resnet20(side: Side, seed: int, scale: float) -> Run:
    """As `python -m fusedopt.train` trains it."""
    images, labels, *test = _digits(16)
    torch.manual_seed(seed)
    model, steps = _resnet("resnet20", 16), shortened(60, scale)
    phase = Phase(side, "AdamW", model, lr=1e-3)
    batches = shuffled(images, labels, 64, steps, seed)
    return Run(
        lambda: train(model, batches, functional.cross_entropy, phase),
        lambda: evaluate(phase.trained, *test, accuracy),
    )


def _resnet50(side: Side, seed: int, scale: float) -> Run:
    """A few steps of He et al.'s recipe, on small images and, so that they fit, small batches."""
    images, labels, *_ = _digits(64)
    torch.manual_seed(seed)
    model, steps = _resnet("resnet50", 64), shortened(5, scale)
    phase = Phase(side, "SGD", model, lr=1e-3, momentum=0.9, weight_decay=1e-4)
    batches = shuffled(images, labels, 32, steps, seed)

    @torch.no_grad()
    def result() -> float:
        """By the batch's own statistics: a few steps haven't made running ones."""
        return float(functional.cross_entropy(model.train()(images[:64]), labels[:64]))

    return Run(lambda: train(model, batches, functional.cross_entropy, phase), result)


def _program(
    name: str,
    title: str,
    optimizer: str,
    make: Callable[[Side, int, float], Run],
    result: str = "accuracy, %",
    whole: bool = False,
) -> Program:
    return Program(name, title, optimizer, make, result, whole, needs=("sklearn",))


PROGRAMS = (
    _program("vit", "small vision transformer, clipping and a moving average", "AdamW", _vit,
             whole=True),
    _program("resnet20", "ResNet-20 on digits", "AdamW", _resnet20),
    _program("resnet50", "ResNet-50, a few steps on 64 × 64 pixels", "SGD", _resnet50,
             "training loss"),
)  # fmt: skip
