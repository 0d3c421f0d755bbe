"""The networks that the training script knows."""

from fusedopt.train.models.make import MODELS, make_model, pretrained_statistics
from fusedopt.train.models.parts import (
    ModelError,
    depth_of_parameters,
    head_of,
    replace_head,
)

__all__ = [
    "MODELS",
    "ModelError",
    "depth_of_parameters",
    "head_of",
    "make_model",
    "pretrained_statistics",
    "replace_head",
]
