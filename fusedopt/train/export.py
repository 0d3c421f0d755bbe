"""Exports a trained network by torch.export, from pixels to logits."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from fusedopt.train import checkpoint
from fusedopt.train.checkpoint import EXPORTED, MODEL, write_atomically
from fusedopt.train.options import Failed
from fusedopt.train.trained import load_network


class _FromPixels(nn.Module):
    def __init__(self, normalize: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.normalize, self.network = normalize, network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalize(images))


def export(folder: Path) -> str:
    """Exports the network in a run's folder.

    The program takes images, uint8 (N, C, H, W), of which there may be any number, and gives logits
    (N, classes). The classes' names are in the file, as `classes.json`.

    Args:
        folder: of a run that has come to its end.

    Returns:
        What the program takes, for people.

    Raises:
        UserError: the network can't be read, or the file can't be written.
        Failed: torch.export can't take such a network.
    """
    content = checkpoint.read(folder / MODEL, "--export")
    network, normalize = load_network(content, folder / MODEL, "--export")
    size, channels = content["image_size"], content["in_channels"]
    images = torch.zeros(2, channels, size, size, dtype=torch.uint8)
    try:
        program = torch.export.export(
            _FromPixels(normalize, network).eval(),
            (images,),
            dynamic_shapes={"images": {0: torch.export.Dim("images")}},
        )
    except Exception as error:  # torch.export raises whatever it stumbles over
        reason = (str(error) or type(error).__name__).splitlines()[0]
        model = content["options"]["model"]
        raise Failed(f"--export: {model} can't be exported: {reason}") from error
    names = {"classes.json": json.dumps(list(content["classes"]))}
    path = folder / EXPORTED
    write_atomically(path, lambda file: torch.export.save(program, file, extra_files=names))
    return f"{path} takes images, uint8 (N, {channels}, {size}, {size}), and gives logits"
