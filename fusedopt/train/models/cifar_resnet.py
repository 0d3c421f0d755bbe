"""The residual networks for small images, ResNet-20 and ResNet-56, as in the paper's CIFAR part."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters (option A of the paper)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's activations, with `channels` channels and size / stride."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels > 0:
            x = F.pad(x, (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """A ResNet for small images: 3 stages of (depth - 2) / 6 basic blocks, 16, 32, 64 channels.

    Args:
        depth: number of layers with weights, 6n + 2: 20, 32, 44, 56, 110.
        num_classes: number of outputs.
        in_channels: channels of an input image; any height and width will do.

    Reference:
        He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015, section 4.2.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.stage1 = self._stage(blocks, 16, 16, stride=1)
        self.stage2 = self._stage(blocks, 16, 32, stride=2)
        self.stage3 = self._stage(blocks, 32, 64, stride=2)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
        others = (BasicBlock(channels, channels, stride=1) for _ in range(blocks - 1))
        return nn.Sequential(BasicBlock(in_channels, channels, stride), *others)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits, (batch, num_classes), of images (batch, channels, height, width)."""
        x = F.relu(self.bn(self.conv(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(x.mean(dim=(2, 3)))
