"""A trained network, from the file that a run has left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fusedopt.train.augment import Normalize
from fusedopt.train.checkpoint import weights_of
from fusedopt.train.models import make_model
from fusedopt.train.options import UserError


def load_network(content: dict[str, Any], path: Path, flag: str) -> tuple[nn.Module, Normalize]:
    """Returns the network in a checkpoint, in eval mode, and the normalisation of its images.

    Args:
        content: of the checkpoint.
        path: that it was read from, for messages.
        flag: names the argument that asked for it, in messages.

    Raises:
        UserError: the checkpoint is damaged.
    """
    try:
        name, classes = content["options"]["model"], content["classes"]
        model = make_model(name, len(classes), content["in_channels"], content["image_size"])
        model.load_state_dict(weights_of(content))
        return model.eval(), Normalize(content["mean"], content["std"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{flag}: {path} is damaged: {str(error).splitlines()[0]}") from error
