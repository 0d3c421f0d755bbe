"""Constructors with the keywords that a torch.optim class doesn't have."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch.optim import Optimizer

from fusedopt import _load
from fusedopt.fallback import torch_class
from fusedopt.precision import PRECISION, set_precision

_TYPES = {
    "state_dtype": torch.dtype | None,
    "stochastic_rounding": bool,
    "master_weights": bool,
    "seed": int | None,
}


def add_options(cls: type[Optimizer], options: tuple[str, ...]) -> None:
    """Gives a class a constructor with more keywords.

    They are these options, those of precision, and `max_grad_norm`.

    Args:
        cls: The class.
        options: `fused` or `capturable`, where its torch.optim class doesn't have them.
    """
    own = cls.__dict__.get("__init__")
    documented = own or _torchs_constructor(cls)

    @functools.wraps(documented)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        if _load.why_not and torch_class(cls) is None:
            raise RuntimeError(
                f"{cls.__name__} has kernels only, and torch.optim no step in their"
                f" place ({_load.why_not})"
            )
        added = {option: kwargs.pop(option, None) for option in options}
        precision = {key: kwargs.pop(key, value) for key, value in PRECISION.items()}
        limit = checked_limit(kwargs.pop("max_grad_norm", None))
        if own is None:
            super(cls, self).__init__(*args, **kwargs)
        else:
            own(self, *args, **kwargs)
        for option, value in added.items():
            _add_option(self, option, value)
        set_precision(self, precision)
        if limit is not None:
            self.max_grad_norm = limit

    signature = inspect.signature(documented)
    keyword = inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter(option, keyword, default=None, annotation=bool | None)
        for option in options
    ]
    more += [
        inspect.Parameter(key, keyword, default=value, annotation=_TYPES[key])
        for key, value in PRECISION.items()
    ]
    more.append(inspect.Parameter("max_grad_norm", keyword, default=None, annotation=float | None))
    parameters = [*signature.parameters.values(), *more]
    __init__.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    cls.__init__ = __init__  # type: ignore[method-assign]


def checked_limit(max_grad_norm: float | None) -> float | None:
    """Returns a `max_grad_norm` that makes sense.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is negative or NaN.
    """
    if max_grad_norm is None:
        return None
    if isinstance(max_grad_norm, (bool, str)):
        raise TypeError(f"max_grad_norm must be a number, got {max_grad_norm!r}")
    limit = float(max_grad_norm)
    if not limit >= 0:
        raise ValueError(f"Invalid max_grad_norm: {max_grad_norm}")
    return limit


def _torchs_constructor(cls: type[Optimizer]) -> Any:
    """Returns that of the first base that is torch's."""
    bases = (base for base in cls.__mro__ if base.__module__.startswith("torch."))
    return next(base.__dict__["__init__"] for base in bases if "__init__" in base.__dict__)


def _add_option(optimizer: Optimizer, option: str, value: bool | None) -> None:
    """Adds an option if it was given.

    Left out otherwise, so that `param_groups` and `state_dict` have torch's keys.
    """
    if value is None:
        return
    if value and option == "fused":
        if optimizer.defaults["differentiable"]:
            raise RuntimeError("`fused` does not support `differentiable`")
        if optimizer.defaults["foreach"]:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    optimizer.defaults[option] = value
    for group in optimizer.param_groups:
        group.setdefault(option, value)
