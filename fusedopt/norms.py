"""Norms of DTensors, and of them and other tensors together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import get_total_norm as torchs_get_total_norm

from fusedopt import _C

_EPS = 1e-6  # what torch adds to a norm before it divides by it

# Sums of squares below and above which float64's have no room in float64, and what elements are
# multiplied by then; csrc/torch/norm.cpp has the same.
_TINY = 2.0**-900
_SCALE = 2.0**600


def placed_norm(tensors: Any, order: float, error_if_nonfinite: bool) -> Tensor | None:
    """Computes the norm of tensors of which some are DTensors, as one vector of all ranks.

    No gradient is gathered: each mesh exchanges one number. A tensor that isn't a DTensor is the
    same on all ranks.

    Args:
        tensors: Tensors, or one.
        order: 2, 1, inf or -inf.
        error_if_nonfinite: Raise if the norm is infinite or NaN.

    Returns:
        The norm: a replicated DTensor if all are DTensors of one mesh, so that `full_tensor` works
        as on torch's. None where torch's function has to compute it: there is no DTensor, or the
        order is another one.

    Raises:
        RuntimeError: If the norm isn't finite and `error_if_nonfinite` is set.
    """
    if not dist.is_available():
        return None
    from torch.distributed.tensor import DTensor

    tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    if order not in (2, 1, math.inf, -math.inf):
        return None
    if not any(type(tensor) is DTensor for tensor in tensors):
        return None
    if not all(type(t) is DTensor or type(t) in (Tensor, torch.nn.Parameter) for t in tensors):
        return None
    if not all(tensor.dtype.is_floating_point for tensor in tensors):
        return None
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    with torch.no_grad():
        plain, by_mesh = _sorted(tensors)
        total = _norm(plain, by_mesh, order, wide)
    wide = wide or torch.finfo(torch.float32).max < total < math.inf
    dtype = torch.float64 if wide else torch.float32
    norm = torch.tensor(total, dtype=dtype, device=tensors[0].device)
    if error_if_nonfinite and not math.isfinite(float(norm)):
        _C.refuse_nonfinite(order)
    if len(by_mesh) == 1 and not plain:
        return _replicated(norm, next(iter(by_mesh)))
    return norm


def clip_placed(parameters: Any, max_norm: float, total_norm: Tensor) -> bool:
    """Scales gradients of which some are DTensors, each where it lies.

    Returns:
        Whether it did: torch's function has to where there is no DTensor.
    """
    if not dist.is_available() or not isinstance(total_norm, Tensor):
        return False
    from torch.distributed.tensor import DTensor

    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    grads = [p.grad for p in parameters if p.grad is not None]
    if not any(type(grad) is DTensor for grad in grads):
        return False
    factor = float(_factor(max_norm, _whole(total_norm.detach())))
    by_mesh: dict[Any, list[Any]] = {}
    for grad in grads:
        by_mesh.setdefault(grad.device_mesh if type(grad) is DTensor else None, []).append(grad)
    with torch.no_grad():
        for group in by_mesh.values():
            torch._foreach_mul_(group, factor)
    return True


def clip_factor(
    optimizer: Any, limit: float, grad_scale: Tensor | None
) -> tuple[float | Tensor, Tensor]:
    """Computes what an optimizer's step multiplies gradients by, for `max_grad_norm`.

    Args:
        optimizer: Whose parameters' gradients are measured.
        limit: The largest norm that they may have.
        grad_scale: What a GradScaler has multiplied them by, or None.

    Returns:
        A number, or a float64 tensor where nobody may ask for its value: on a device, under a mode
        or in a transform. And the norm.

    Raises:
        TypeError: If the groups or their parameters can be gone through only once.
    """
    groups = optimizer.param_groups
    if isinstance(groups, Iterator) or any(isinstance(g["params"], Iterator) for g in groups):
        raise TypeError("max_grad_norm: parameters in an iterator can't be measured and stepped")
    params = [param for group in groups for param in group["params"]]
    grads = [param.grad for param in params if param.grad is not None]
    with torch.no_grad():
        norm = get_total_norm(grads)
        if grad_scale is not None:
            norm = norm / grad_scale.to(norm.device)
        factor = _factor(limit, _whole(norm))
    is_known = type(factor) is Tensor and factor.device.type == "cpu" and not _C.is_transformed()
    return (float(factor) if is_known else factor.double()), norm


def get_total_norm(
    tensors: Any,
    order: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Computes the norm by our kernels, of DTensors, or by torch."""
    norm = _C.get_total_norm(tensors, order, error_if_nonfinite)
    if norm is None:
        norm = placed_norm(tensors, order, error_if_nonfinite)
    if norm is None:
        norm = torchs_get_total_norm(tensors, order, error_if_nonfinite, foreach)
    return norm


def _factor(max_norm: float, norm: Tensor) -> Tensor:
    """Returns what gradients of this norm are multiplied by, as torch computes it."""
    return torch.clamp(max_norm / (norm + _EPS), max=1.0)


def _replicated(norm: Tensor, mesh: Any) -> Tensor:
    """Returns a DTensor of a number that all ranks have, where it lies.

    `DTensor.from_local` would move it to the mesh's device; but FSDP2's CPUOffloadPolicy keeps the
    pieces of a mesh of GPUs in the CPU's memory, and there torch's norm is, too.
    """
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    meta = TensorMeta(norm.shape, norm.stride(), norm.dtype)
    spec = DTensorSpec(mesh, (Replicate(),) * mesh.ndim, tensor_meta=meta)
    return DTensor(norm, spec, requires_grad=False)  # type: ignore[no-untyped-call]


def _whole(norm: Tensor) -> Tensor:
    full = getattr(norm, "full_tensor", None)
    return norm if full is None else full()


def _sorted(tensors: Sequence[Any]) -> tuple[list[Any], dict[Any, list[Any]]]:
    """Returns the tensors that are no DTensors, and the others by their meshes, summands added."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    by_mesh: dict[Any, list[Any]] = {}
    for tensor in tensors:
        if type(tensor) is DTensor:
            if any(isinstance(placement, Partial) for placement in tensor.placements):
                whole = [Replicate() if p.is_partial() else p for p in tensor.placements]
                tensor = tensor.redistribute(placements=whole)
            by_mesh.setdefault(tensor.device_mesh, []).append(tensor)
    return [tensor for tensor in tensors if type(tensor) is not DTensor], by_mesh


def _norm(plain: list[Any], by_mesh: dict[Any, list[Any]], order: float, wide: bool) -> float:
    """Returns the norm of all; `wide`: some are in float64, whose squares may have no room."""
    total = _total(plain, by_mesh, order, 1.0)
    if order != 2:
        return total
    scale = _SCALE if total < _TINY else 1 / _SCALE if total == math.inf else 1.0
    if wide and scale != 1:
        return math.sqrt(_total(plain, by_mesh, order, scale)) / scale
    return math.sqrt(total)


def _total(plain: list[Any], by_mesh: dict[Any, list[Any]], order: float, scale: float) -> float:
    """Returns the sum of squares, of elements times `scale`, or of magnitudes, or the extreme."""
    parts = [_partial(plain, order, scale)] if plain else []
    parts += [_of_mesh(mesh, pieces, order, scale) for mesh, pieces in by_mesh.items()]
    if order == math.inf:
        return _extreme(parts, max)
    if order == -math.inf:
        return _extreme(parts, min)
    return sum(parts)


def _of_mesh(mesh: Any, pieces: list[Any], order: float, scale: float) -> float:
    """Returns a mesh's part: each shard counts, and each replica once."""
    cut = {d for t in pieces for d, p in enumerate(t.placements) if not p.is_replicate()}
    coordinate = mesh.get_coordinate()
    if coordinate is None:  # this process has no part of it
        return math.inf if order == -math.inf else 0.0
    mine = [
        tensor.to_local()
        for tensor in pieces
        if math.isinf(order)
        or all(coordinate[d] == 0 for d in cut if tensor.placements[d].is_replicate())
    ]
    part = _partial(mine, order, scale)
    value = torch.tensor(part, dtype=torch.float64, device=pieces[0].device)
    operation = {math.inf: dist.ReduceOp.MAX, -math.inf: dist.ReduceOp.MIN}
    for d in sorted(cut):
        dist.all_reduce(value, operation.get(order, dist.ReduceOp.SUM), group=mesh.get_group(d))
    return float(value)


def _partial(tensors: Iterable[Tensor], order: float, scale: float) -> float:
    """Returns the part of this process, as `_total`."""
    tensors = [tensor for tensor in tensors if tensor.numel() != 0]
    if scale != 1:  # one after another, because each is copied
        return float(sum(_partial([tensor.double() * scale], order, 1.0) for tensor in tensors))
    part = _C.norm_part(tensors, order)
    if part is not None:
        return part
    norms = [float(torch.linalg.vector_norm(t, order, dtype=torch.float64)) for t in tensors]
    if order == math.inf:
        return _extreme(norms, max)
    if order == -math.inf:
        return _extreme(norms, min)
    return float(sum(norm * norm if order == 2 else norm for norm in norms))


def _extreme(values: list[float], choose: Callable[..., float]) -> float:
    """Returns the largest or the smallest; a NaN, if there is one."""
    if any(math.isnan(value) for value in values):
        return math.nan
    return choose(values, default=0.0 if choose is max else math.inf)
