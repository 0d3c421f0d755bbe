"""LeNet, as PyTorch's 60-minute blitz has it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusedopt.train.models.parts import ModelError


class LeNet(nn.Module):
    """The small convolutional network of PyTorch's 60-minute blitz, after LeNet-5.

    Args:
        num_classes: number of outputs.
        in_channels: channels of an input image.
        image_size: height and width of an input image, at least 16.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        if image_size < 16:
            raise ModelError(f"LeNet needs images of at least 16 pixels, not {image_size}")
        last_size = ((image_size - 4) // 2 - 4) // 2
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * last_size**2, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits, (batch, num_classes), of images (batch, channels, size, size)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)
