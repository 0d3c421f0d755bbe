"""What torchvision changes in batches of images: RandAugment, mixup and CutMix."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

MIXING = ("mixup", "cutmix")  # of images and labels
BORROWED = ("randaugment", *MIXING)
# The parameters of the distributions of shares, as torchvision's own training script has them.
MIXUP_ALPHA, CUTMIX_ALPHA = 0.2, 1.0

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class BorrowedError(ValueError):
    """torchvision is missing or can't be used; its text is the whole message."""


def _transforms(name: str) -> Any:
    """Returns torchvision's transforms; `name` is what needs them."""
    try:
        return importlib.import_module("torchvision.transforms.v2")
    except ModuleNotFoundError as error:
        raise BorrowedError(
            f"{name} needs torchvision, which is not installed: pip install torchvision"
        ) from error
    except Exception as error:  # a torchvision built for another torch: RuntimeError and others
        raise BorrowedError(f"{name}: torchvision can't be imported: {error}") from error


class RandAugment(nn.Module):
    """Changes each image by two random operations; in eval mode none. torch's generator draws them.

    Raises:
        BorrowedError: torchvision is missing.

    Reference:
        Cubuk et al.: RandAugment, 2019; torchvision.transforms.v2.RandAugment.
    """

    def __init__(self) -> None:
        super().__init__()
        self._change = _transforms("randaugment").RandAugment()

    def forward(self, images: Tensor) -> Tensor:
        """Returns images like those that came, (N, C, H, W), uint8."""
        if not self.training or len(images) == 0:
            return images
        return torch.stack([self._change(image) for image in images])


def make_mixing(names: Sequence[str], classes: int) -> Mix | None:
    """Returns what mixes the images of a batch, or None. torch's generator draws the shares.

    Args:
        names: those of MIXING are used; of two each batch gets one.
        classes: their number.

    Returns:
        From images (N, C, H, W), floating point, and labels (N,) to mixed images, and labels
        (N, classes): the share of each class.

    Raises:
        BorrowedError: torchvision is missing or can't be used.

    Reference:
        Zhang et al.: mixup, 2017; Yun et al.: CutMix, 2019; torchvision.transforms.v2.
    """
    chosen = [name for name in MIXING if name in names]
    if not chosen:
        return None
    transforms = _transforms(chosen[0])
    try:
        made = {
            "mixup": lambda: transforms.MixUp(alpha=MIXUP_ALPHA, num_classes=classes),
            "cutmix": lambda: transforms.CutMix(alpha=CUTMIX_ALPHA, num_classes=classes),
        }
        mixes = [made[name]() for name in chosen]
        return mixes[0] if len(mixes) == 1 else transforms.RandomChoice(mixes)
    except (AttributeError, TypeError, RuntimeError) as error:
        raise BorrowedError(f"{chosen[0]}: torchvision can't be used: {error}") from error
