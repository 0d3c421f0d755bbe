"""Parameters with gradients, for the tests of norms and clipping."""

from __future__ import annotations

import math

import torch
from helpers import random
from torch import Tensor
from torch.nn import Parameter

ORDERS = (2.0, 1.0, 0.0, math.inf, -math.inf, 3.0, -1.0, "inf")
SHAPES = ((5, 7), (), (4099,), (3, 2), (1,))


def params_with(grads: list[Tensor]) -> list[Parameter]:
    """Parameters with copies of these gradients, which keep their strides."""
    params = []
    for grad in grads:
        param = Parameter(torch.zeros(grad.shape, dtype=grad.dtype))
        param.grad = grad.clone(memory_format=torch.preserve_format)
        params.append(param)
    return params


def make_grads(dtype: torch.dtype = torch.float32, scale: float = 3.0) -> list[Tensor]:
    return [(random(shape, i) * scale).to(dtype) for i, shape in enumerate(SHAPES)]


def grads_of(params: list[Parameter]) -> list[Tensor | None]:
    return [param.grad for param in params]


def exact_norm(grads: list[Tensor]) -> float:
    """In float64, and at no risk of overflow."""
    return math.hypot(*torch.cat([grad.double().flatten() for grad in grads]).tolist())
