"""VGG with batch norm, with the layers and the parameters' names of torchvision's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusedopt.train.models.small import SMALL

# Convolutions of each stage; all of a stage have the same number of channels.
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3)}
CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five stages of 3x3 convolutions with batch norm, each pooled, and three linear layers.

    Images below 64 pixels get a form for small images: one pixel is never pooled, and the linear
    layers see 1x1 pixels instead of 7x7.

    Args:
        depth: number of layers with weights, 11 or 16.
        num_classes: number of outputs.
        in_channels: channels of an input image.
        image_size: height and width of an input image.
        dropout: probability to drop an output of the first two linear layers, in train mode.

    Reference:
        Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition,
        2014, configurations A and D. Batch norm: Ioffe, Szegedy, 2015.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int = 224,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        small = image_size < SMALL
        layers: list[nn.Module] = []
        for count, channels in zip(CONVOLUTIONS[depth], CHANNELS, strict=True):
            for _ in range(count):
                layers += [
                    nn.Conv2d(in_channels, channels, 3, padding=1),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(inplace=True),
                ]
                in_channels = channels
            layers.append(nn.MaxPool2d(2, ceil_mode=small))
        grid = 1 if small else 7
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(grid)
        self.classifier = nn.Sequential(
            nn.Linear(512 * grid**2, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)  # as the paper has it
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits, (batch, num_classes), of images (batch, channels, height, width)."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
