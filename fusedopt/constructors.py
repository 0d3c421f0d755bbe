"""Constructors of classes that take an option which their torch.optim class doesn't have."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch.optim import Optimizer


def add_options(cls: type[Optimizer], options: tuple[str, ...]) -> None:
    """Gives a class a constructor with these keywords more, `fused` or `capturable`."""
    torchs = cls.__init__

    @functools.wraps(torchs)
    def __init__(self: Optimizer, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        added = {option: kwargs.pop(option, None) for option in options}
        super(cls, self).__init__(*args, **kwargs)
        for option, value in added.items():
            _add_option(self, option, value)

    signature = inspect.signature(torchs)
    more = [
        inspect.Parameter(
            option, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=bool | None
        )
        for option in options
    ]
    parameters = [*signature.parameters.values(), *more]
    __init__.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    cls.__init__ = __init__  # type: ignore[method-assign]


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
