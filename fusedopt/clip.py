"""torch.nn.utils' functions that clip gradients, in one pass for the norm and one to scale."""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# The functions themselves: where a program has put ours in their place, torch.nn.utils has ours.
from torch.nn.utils import clip_grad_norm_ as torchs_clip_grad_norm_
from torch.nn.utils import clip_grad_value_ as torchs_clip_grad_value_
from torch.nn.utils import clip_grads_with_norm_ as torchs_clip_grads_with_norm_
from torch.nn.utils import get_total_norm as torchs_get_total_norm

from fusedopt import _C, norms
from fusedopt.norms import clip_placed, placed_norm

_Tensors = Tensor | Iterable[Tensor]


def get_total_norm(
    tensors: _Tensors,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Computes the norm of tensors as if they were one vector.

    As torch.nn.utils.get_total_norm, but summed in float64 and always in the same order: the value
    depends on no thread count and no instruction set, is within 1e-7 of the exact one, and is
    infinite or NaN only where a tensor is.

    Args:
        tensors: Tensors, or one, of any shapes and dtypes.
        norm_type: The order: 2, 1, 0, inf and -inf are computed by our kernels on the CPU, any
            other by torch.
        error_if_nonfinite: Raise if the norm is infinite or NaN.
        foreach: As torch's, where its function is called.

    Returns:
        A tensor without dimensions. Where our kernels compute it, float64 if any of the tensors is,
        and else float32, so that float16's range and bfloat16's 8 bits don't limit it. Of DTensors
        on one mesh a replicated DTensor.

    Raises:
        RuntimeError: If the norm isn't finite and `error_if_nonfinite` is set.

    Reference:
        torch.nn.utils.get_total_norm
    """
    if torch.compiler.is_compiling():
        return torchs_get_total_norm(tensors, norm_type, error_if_nonfinite, foreach)
    order = float(norm_type)
    return norms.get_total_norm(_listed(tensors), order, bool(error_if_nonfinite), foreach)


def clip_grads_with_norm_(
    parameters: _Tensors, max_norm: float, total_norm: Tensor, foreach: bool | None = None
) -> None:
    """Scales gradients in place, by max_norm / (total_norm + 1e-6), if that is less than 1.

    Args:
        parameters: Parameters, or one. Those without a gradient are passed over.
        max_norm: The largest norm that gradients may have.
        total_norm: Their norm, as from `get_total_norm`.
        foreach: As torch's, where its function is called.

    Reference:
        torch.nn.utils.clip_grads_with_norm_
    """
    if torch.compiler.is_compiling():
        return torchs_clip_grads_with_norm_(parameters, max_norm, total_norm, foreach)
    parameters = _listed(parameters)
    limit = float(max_norm)
    done = _C.clip_grads_with_norm(parameters, limit, total_norm)
    if done is None and not clip_placed(parameters, limit, total_norm):
        torchs_clip_grads_with_norm_(parameters, max_norm, total_norm, foreach)
    return None


def clip_grad_norm_(
    parameters: _Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Clips the norm of parameters' gradients, in place.

    Args:
        parameters: Parameters, or one. Those without a gradient are passed over.
        max_norm: The largest norm that gradients may have.
        norm_type: The norm's order, as in `get_total_norm`.
        error_if_nonfinite: Raise if the norm is infinite or NaN; nothing is changed then.
        foreach: As torch's, where its function is called.

    Returns:
        The norm before clipping, as `get_total_norm` returns it.

    Raises:
        RuntimeError: If the norm isn't finite and `error_if_nonfinite` is set.

    Example:
        >>> loss.backward()
        >>> norm = fusedopt.clip_grad_norm_(model.parameters(), max_norm=1.0)
        >>> optimizer.step()

    Reference:
        torch.nn.utils.clip_grad_norm_
    """
    if torch.compiler.is_compiling():
        return torchs_clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
    is_generator = isinstance(parameters, types.GeneratorType)
    parameters = _listed(parameters)
    if is_generator and not parameters:
        warnings.warn(
            "`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=2
        )
    order, limit = float(norm_type), float(max_norm)
    norm = _C.clip_grad_norm(parameters, limit, order, bool(error_if_nonfinite))
    if norm is not None:
        return norm
    grads = [p.grad for p in _each(parameters) if p.grad is not None]
    norm = placed_norm(grads, order, error_if_nonfinite)
    if norm is None:
        return torchs_clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
    clip_placed(parameters, limit, norm)
    return norm


def clip_grad_value_(parameters: _Tensors, clip_value: float, foreach: bool | None = None) -> None:
    """Clamps every element of the gradients to [-clip_value, clip_value], in place.

    Args:
        parameters: Parameters, or one. Those without a gradient are passed over.
        clip_value: The largest magnitude that an element may have.
        foreach: As torch's, where its function is called.

    Reference:
        torch.nn.utils.clip_grad_value_
    """
    if torch.compiler.is_compiling():
        return torchs_clip_grad_value_(parameters, clip_value, foreach)
    parameters = _listed(parameters)
    if _C.clip_grad_value(parameters, float(clip_value)) is None:
        torchs_clip_grad_value_(parameters, clip_value, foreach)
    return None


def _listed(tensors: _Tensors) -> Any:
    """Returns what can be gone through more than once, as the extension takes it."""
    return tensors if isinstance(tensors, (Tensor, list, tuple)) else list(tensors)


def _each(tensors: Any) -> Any:
    return [tensors] if isinstance(tensors, Tensor) else tensors
