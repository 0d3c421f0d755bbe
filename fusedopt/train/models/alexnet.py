"""AlexNet, with the layers and the parameters' names of torchvision's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusedopt.train.models.small import SMALL


class AlexNet(nn.Module):
    """Five convolutions with 64, 192, 384, 256 and 256 channels, and three linear layers.

    Images below 64 pixels get a form for small images: the first convolution is 3x3 with stride 1
    instead of 11x11 with stride 4, pooling is 2x2, and the linear layers see what is left, an
    eighth of the image's size.

    Args:
        num_classes: number of outputs.
        in_channels: channels of an input image.
        image_size: height and width of an input image.
        dropout: probability to drop an input of the first two linear layers, in train mode.

    Reference:
        Krizhevsky: One weird trick for parallelizing convolutional neural networks, 2014.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int = 224,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        small = image_size < SMALL
        grid = min(6, -(-image_size // 8)) if small else 6

        def pool() -> nn.Module:
            return nn.MaxPool2d(2, ceil_mode=True) if small else nn.MaxPool2d(3, 2)

        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 64, 3, padding=1)
            if small
            else nn.Conv2d(in_channels, 64, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            pool(),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            pool(),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            pool(),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(grid)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * grid**2, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits, (batch, num_classes), of images (batch, channels, height, width)."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
