"""torch.optim.swa_utils with averages of models that are updated by one call into C++."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import swa_utils as torchs
from torch.optim.swa_utils import SWALR, update_bn

from fusedopt import _C

__all__ = [
    "SWALR",
    "AveragedModel",
    "get_ema_avg_fn",
    "get_ema_multi_avg_fn",
    "get_swa_avg_fn",
    "get_swa_multi_avg_fn",
    "update_bn",
]

# Keyed by whether it averages lists of tensors, and whether it has a decay.
_PER_FUNCTION: dict[tuple[bool, bool], Callable[..., Any]] = {
    (True, True): torchs.get_ema_multi_avg_fn,
    (True, False): torchs.get_swa_multi_avg_fn,
    (False, True): torchs.get_ema_avg_fn,
    (False, False): torchs.get_swa_avg_fn,
}


class AveragedModel(torchs.AveragedModel):
    """A copy of a model whose parameters are averages of the model's.

    As torch.optim.swa_utils.AveragedModel, which it is derived from: the same `state_dict`, and the
    same values, where the average is linear interpolation bit for bit. `update_parameters` is one
    call into C++ where the tensors are on the CPU and the function that averages is one of this
    module's or none; otherwise torch's method runs. DTensors are averaged where they lie.

    In bfloat16 and float16 an average hardly moves: with a decay of 0.999 a step adds a thousandth
    of the distance to the model, and that is less than half of the last place of bfloat16's 8 bits
    unless the distance is larger than the average itself; so it is rounded away, and the average
    stands still. With `dtype=torch.float32` the average of such a model is kept in float32 and is
    updated from the 16-bit parameters directly.

    Args:
        model: The model; it is copied.
        device: Where the copy is put. Default: where the model is.
        avg_fn: Averages one tensor, as `get_ema_avg_fn()` does. Default: all values weigh the same.
        multi_avg_fn: Averages lists of tensors, as `get_ema_multi_avg_fn()` does.
        use_buffers: Average the buffers too, rather than copy them.
        dtype: What the copy's floating-point parameters and buffers are converted to. Default: what
            the model's are.

    Raises:
        TypeError: If `dtype` is none for floating-point numbers.

    Example:
        >>> ema = fusedopt.swa_utils.AveragedModel(
        ...     model, multi_avg_fn=fusedopt.swa_utils.get_ema_multi_avg_fn(0.999)
        ... )
        >>> for input, target in loader:
        ...     optimizer.zero_grad()
        ...     loss_fn(model(input), target).backward()
        ...     optimizer.step()
        ...     ema.update_parameters(model)

    Reference:
        torch.optim.swa_utils.AveragedModel
    """

    _fusedopt_dtype: torch.dtype | None = None

    def __init__(
        self,
        model: Module,
        device: int | torch.device | None = None,
        avg_fn: Callable[[Tensor, Tensor, Tensor | int], Tensor] | None = None,
        multi_avg_fn: Callable[[Any, Any, Tensor | int], None] | None = None,
        use_buffers: bool = False,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype must be one of floating-point numbers, got {dtype!r}")
        super().__init__(model, device, avg_fn, multi_avg_fn, use_buffers)
        if dtype is not None:
            self._fusedopt_dtype = dtype
            self.module._apply(lambda t: t.to(dtype) if t.is_floating_point() else t)  # type: ignore[no-untyped-call]

    def update_parameters(self, model: Module) -> None:
        """Updates the average by the model's parameters, and counts `n_averaged` up.

        The first call copies them.

        Args:
            model: The model, whose parameters and buffers are as many as the average's, and of the
                same shapes.
        """
        if torch.compiler.is_compiling() or not _C.update_parameters(self, model):
            dtype = self._fusedopt_dtype
            super().update_parameters(model if dtype is None else _Converted(model, dtype))  # type: ignore[arg-type]


def get_ema_multi_avg_fn(decay: float = 0.999) -> Callable[[Any, Any, Tensor | int], None]:
    """Returns the function for `multi_avg_fn` that makes an exponential moving average.

    Each average becomes `decay` times itself and `1 - decay` times the newest value, by linear
    interpolation.

    Args:
        decay: The weight of the average, in [0, 1].

    Raises:
        ValueError: If `decay` is outside of [0, 1].

    Reference:
        torch.optim.swa_utils.get_ema_multi_avg_fn
    """
    return _average(True, decay)


def get_swa_multi_avg_fn() -> Callable[[Any, Any, Tensor | int], None]:
    """Returns the function for `multi_avg_fn` under which all values weigh the same.

    Reference:
        torch.optim.swa_utils.get_swa_multi_avg_fn
    """
    return _Average(True, None)


def get_ema_avg_fn(decay: float = 0.999) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Returns the function for `avg_fn` that makes an exponential moving average.

    Args:
        decay: The weight of the average, in [0, 1].

    Raises:
        ValueError: If `decay` is outside of [0, 1].

    Reference:
        torch.optim.swa_utils.get_ema_avg_fn
    """
    return _average(False, decay)


def get_swa_avg_fn() -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Returns the function for `avg_fn` under which all values weigh the same.

    Reference:
        torch.optim.swa_utils.get_swa_avg_fn
    """
    return _Average(False, None)


class _Average:
    """One of torch's functions that average, which the extension knows by its attributes.

    Unlike torch's, which are closures, it can be pickled.
    """

    def __init__(self, multi: bool, decay: float | None) -> None:
        self.multi = multi
        self.decay = decay

    def __repr__(self) -> str:
        name = _PER_FUNCTION[self.multi, self.decay is not None].__name__
        return f"fusedopt.swa_utils.{name}({'' if self.decay is None else self.decay})"

    def __call__(self, averaged: Any, current: Any, num_averaged: Tensor | int) -> Any:
        if (
            self.multi
            and not torch.compiler.is_compiling()
            and _C.average_tensors(self, averaged, current, num_averaged)
        ):
            return None
        make = _PER_FUNCTION[self.multi, self.decay is not None]
        function = make() if self.decay is None else make(self.decay)
        return function(averaged, current, num_averaged)


def _average(multi: bool, decay: Any) -> Callable[..., Any]:
    """Returns torch's own function where `decay` isn't a number of Python's."""
    torchs_function = _PER_FUNCTION[multi, True](decay)  # raises where that makes no sense
    return _Average(multi, float(decay)) if type(decay) in (float, int) else torchs_function


class _Converted:
    """What torch's `update_parameters` asks a model for, in the average's dtype."""

    def __init__(self, model: Module, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype

    def parameters(self) -> Iterator[Tensor]:
        return map(self._convert, self.model.parameters())

    def buffers(self) -> Iterator[Tensor]:
        return map(self._convert, self.model.buffers())

    def _convert(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Resolves the other names of torch.optim.swa_utils."""
        return getattr(torchs, name)


def __dir__() -> Sequence[str]:
    """Lists this module's names and torch's."""
    return sorted({*globals(), *dir(torchs)})
