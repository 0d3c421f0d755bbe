"""Random changes to batches of images, drawn from an explicit generator, and normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedopt.train.data.splits import Splits
from fusedopt.train.mixing import BORROWED, MIXING, RandAugment

SPECS = ("none", "crop", "flip", "resized-crop", *BORROWED)


class RandomCrop(nn.Module):
    """Pads with black, and cuts out a square at a random place, another one for each image.

    In eval mode it cuts out the middle.

    Args:
        size: height and width of what is cut out.
        padding: pixels added at each side before.
        generator: a CPU generator that draws the places; None for torch's own.
    """

    def __init__(
        self, size: int, padding: int = 0, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if size < 1 or padding < 0:
            raise ValueError(f"size {size} must be at least 1, padding {padding} at least 0")
        self.size, self.padding, self.generator = size, padding, generator

    def forward(self, images: Tensor) -> Tensor:
        """Returns images (N, C, size, size) of images (N, C, H, W), uint8 or floating point."""
        padded = F.pad(images, (self.padding,) * 4)
        batch, _, height, width = padded.shape
        space_y, space_x = height - self.size, width - self.size
        if min(space_y, space_x) < 0:
            raise ValueError(f"can't cut {self.size} pixels out of {height}x{width}")
        if self.training:
            top = torch.randint(space_y + 1, (batch, 1), generator=self.generator)
            left = torch.randint(space_x + 1, (batch, 1), generator=self.generator)
        else:
            top = torch.full((batch, 1), space_y // 2)
            left = torch.full((batch, 1), space_x // 2)
        rows = (top + torch.arange(self.size)).unsqueeze(2).to(images.device)
        columns = (left + torch.arange(self.size)).unsqueeze(1).to(images.device)
        image = torch.arange(batch, device=images.device).view(-1, 1, 1)
        return padded[image, :, rows, columns].permute(0, 3, 1, 2).contiguous()


class RandomHorizontalFlip(nn.Module):
    """Mirrors each image, left to right, with probability `p`; in eval mode none.

    Args:
        p: the probability.
        generator: a CPU generator that draws which; None for torch's own.
    """

    def __init__(self, p: float = 0.5, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p must be from 0 to 1, not {p}")
        self.p, self.generator = p, generator

    def forward(self, images: Tensor) -> Tensor:
        """Returns images like those that came, (N, C, H, W), uint8 or floating point."""
        if not self.training:
            return images
        flip = torch.rand(len(images), generator=self.generator) < self.p
        return torch.where(flip.view(-1, 1, 1, 1).to(images.device), images.flip(3), images)


class RandomResizedCrop(nn.Module):
    """Cuts a random rectangle out of each image, and scales it to `size`; "Inception" cropping.

    Where ten draws give no rectangle that lies in the image, it is the largest one in the middle
    whose sides have a ratio in the range. In eval mode the whole image is scaled.

    Args:
        size: height and width of the result.
        scale: least and greatest share of the image's area.
        ratio: least and greatest width / height of the rectangle, drawn evenly in its logarithm.
        generator: a CPU generator that draws the rectangles; None for torch's own.

    Reference:
        Szegedy et al.: Going Deeper with Convolutions, 2014, section 6.
    """

    DRAWS = 10

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be at least 1, not {size}")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be a range within 0 to 1, not {scale}")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"ratio must be a range above 0, not {ratio}")
        self.size, self.scale, self.ratio, self.generator = size, scale, ratio, generator

    def boxes(self, batch: int, height: int, width: int) -> Tensor:
        """Draws rectangles.

        Args:
            batch: how many.
            height: of the images, in pixels.
            width: of the images, in pixels.

        Returns:
            (batch, 4), int64: top, left, height, width, each within the image.
        """
        shape = (batch, self.DRAWS)
        rand = (torch.rand(shape, generator=self.generator) for _ in range(4))
        low, high = self.scale
        area = height * width * (low + (high - low) * next(rand))
        low, high = map(math.log, self.ratio)
        aspect = torch.exp(low + (high - low) * next(rand))
        w = torch.round(torch.sqrt(area * aspect)).long()
        h = torch.round(torch.sqrt(area / aspect)).long()
        fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
        first = fits.int().argmax(1, keepdim=True)
        found = fits.any(1)
        w, h = (torch.gather(side, 1, first).squeeze(1) for side in (w, h))
        fallback = min(max(width / height, self.ratio[0]), self.ratio[1])
        w = torch.where(found, w, max(1, min(width, round(height * fallback))))
        h = torch.where(found, h, max(1, min(height, round(width / fallback))))
        top, left = (
            torch.where(found, (next(rand)[:, 0] * (space + 1)).long(), space // 2)
            for space in (height - h, width - w)
        )
        return torch.stack([top, left, h, w], 1)

    def forward(self, images: Tensor) -> Tensor:
        """Returns images (N, C, size, size) of images (N, C, H, W), of the same dtype."""
        batch, _, height, width = images.shape
        size = (self.size, self.size)
        if self.training:
            boxes = self.boxes(batch, height, width).tolist()
        elif (height, width) == size:
            return images
        else:
            boxes = [(0, 0, height, width)] * batch
        # Each rectangle has a size of its own, so that one call can't scale them all with
        # antialiasing. uint8 is scaled in floating point and rounded.
        scaled = [
            F.interpolate(
                image[None, :, top : top + h, left : left + w].float(),
                size,
                mode="bilinear",
                antialias=True,
            )
            for image, (top, left, h, w) in zip(images, boxes, strict=True)
        ]
        result = torch.cat(scaled) if scaled else images.new_zeros(0, images.shape[1], *size)
        if not images.is_floating_point():
            result = result.round().clamp(0, 255)
        return result.to(images.dtype)


class Normalize(nn.Module):
    """Brings each channel to mean 0 and standard deviation 1, in float32.

    Args:
        mean: of each channel, in 0..1.
        std: standard deviation of each channel, in 0..1; 0 (a constant channel) counts as 1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise ValueError(f"{len(mean)} means and {len(std)} standard deviations")
        divisor = [value or 1.0 for value in std]
        # Not persistent: they belong to the data, not to a model's checkpoint.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(divisor).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Returns float32 of images (N, C, H, W): uint8, or floating point in 0..1."""
        scaled = images.float() if images.is_floating_point() else images.float() / 255
        mean, std = self.mean.to(images.device), self.std.to(images.device)
        return (scaled - mean) / std


class Compose(nn.Sequential):
    """Applies modules one after the other."""


def make_augmentation(
    spec: str | Sequence[str], splits: Splits, generator: torch.Generator | None = None
) -> nn.Module:
    """Returns what turns a batch from a loader into a model's input.

    In train mode it changes the images at random and normalises them, in eval mode it only
    normalises.

    Args:
        spec: "none"; or names, in a sequence or joined by commas, of what is done, in this order:
            "crop" (padding by an eighth, RandomCrop), "resized-crop" (RandomResizedCrop), "flip"
            (RandomHorizontalFlip), "randaugment" (RandAugment). "mixup" and "cutmix" also change
            labels: `make_mixing` is for them.
        splits: the data, for size and statistics.
        generator: a CPU generator that draws everything; None for torch's own.

    Returns:
        A module: images (N, C, H, W), uint8, to float32.

    Raises:
        ValueError: an unknown name, or torchvision is missing.
    """
    names = spec.split(",") if isinstance(spec, str) else list(spec)
    size = splits.image_size
    modules: list[nn.Module] = []
    for name in map(str.strip, names):
        if name == "crop":
            modules.append(RandomCrop(size, math.ceil(size / 8), generator))
        elif name == "resized-crop":
            modules.append(RandomResizedCrop(size, generator=generator))
        elif name == "flip":
            modules.append(RandomHorizontalFlip(0.5, generator))
        elif name == "randaugment":
            modules.append(RandAugment())
        elif (name != "none" or len(names) > 1) and name not in MIXING:
            raise ValueError(f"there is no augmentation {name!r}; there are {', '.join(SPECS)}")
    return Compose(*modules, Normalize(splits.mean, splits.std))
