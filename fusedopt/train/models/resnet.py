"""The ImageNet ResNets, with the layers and the parameters' names of torchvision's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedopt.train.models.small import SMALL


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Sequential | None:
    """Returns a 1x1 convolution with batch norm where a block changes the shape, else None."""
    if stride == 1 and in_channels == channels:
        return None
    convolution = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (option B of the paper)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's activations, with `width` channels and size / stride."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the 3x3 one has the stride."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        channels = self.expansion * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's activations, with `4 * width` channels and size / stride."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class ResNet(nn.Module):
    """Four stages of residual blocks: basic ones for a depth of 18 or 34, bottlenecks for 50.

    Images below 64 pixels get a form for small images: the first convolution is 3x3 with stride 1
    instead of 7x7 with stride 2, and the pooling after it is left out.

    Args:
        depth: number of layers with weights, 18, 34 or 50.
        num_classes: number of outputs.
        in_channels: channels of an input image.
        image_size: height and width of an input image.

    Reference:
        He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015, table 1; with the
        stride in a bottleneck's 3x3 convolution, as torchvision has it ("v1.5").
    """

    def __init__(
        self, depth: int, num_classes: int = 1000, in_channels: int = 3, image_size: int = 224
    ) -> None:
        super().__init__()
        block = BasicBlock if depth < 50 else Bottleneck
        if image_size < SMALL:
            self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
            self.maxpool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(64)
        in_channels = 64
        for i, count in enumerate(BLOCKS[depth]):
            stage = nn.Sequential()
            for j in range(count):
                width, stride = 64 * 2**i, 2 if i > 0 and j == 0 else 1
                stage.append(block(in_channels, width, stride))
                in_channels = block.expansion * width
            self.add_module(f"layer{i + 1}", stage)
        self.fc = nn.Linear(in_channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits, (batch, num_classes), of images (batch, channels, height, width)."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
