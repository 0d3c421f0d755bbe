"""How numbers are stored, where not as torch.optim stores them: options that groups have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fusedopt import _C, _load

# The constructors' keywords, and their values where they aren't given.
PRECISION: dict[str, Any] = {
    "state_dtype": None,
    "stochastic_rounding": False,
    "master_weights": False,
    "seed": None,
}
REMAINDER = "param_remainder"  # the state's key for the lower halves of master weights

_STATE_DTYPES = (None, torch.float32, torch.bfloat16)


def describe(group: Mapping[str, Any]) -> str:
    """Names the options that are on, such as ``stochastic_rounding, state_dtype=float32``."""
    named = [key for key in ("stochastic_rounding", "master_weights") if group.get(key)]
    dtype = group.get("state_dtype")
    if dtype is not None:
        named.append(f"state_dtype={str(dtype).removeprefix('torch.')}")
    return ", ".join(named)


def set_precision(optimizer: Any, given: Mapping[str, Any]) -> None:
    """Gives the groups the options that a constructor was given, and checks all groups.

    Those that are off are left out, so that `param_groups` and `state_dict` have torch's keys.

    Raises:
        TypeError: If an option has a wrong type.
        ValueError: If it has a wrong value, or if torch's own step is asked for, which has none of
            them.
    """
    options = {key: value for key, value in given.items() if value is not PRECISION[key]}
    if options.get("stochastic_rounding") is True:
        options.setdefault("seed", 0)
    check_precision({**optimizer.defaults, **options}, type(optimizer).__name__)
    for key, value in options.items():
        optimizer.defaults[key] = value
        for group in optimizer.param_groups:
            group.setdefault(key, value)
    for index, group in enumerate(optimizer.param_groups):
        check_precision(group, f"param_groups[{index}]")
        _convert_state(optimizer, group)


def _convert_state(optimizer: Any, group: Mapping[str, Any]) -> None:
    """Makes state anew that torch's constructor has made, as Adagrad's does: 0.3 isn't bfloat16.

    And remainders, since torch.distributed.checkpoint takes such state for all that there is.
    """
    dtype, halves = group.get("state_dtype"), group.get("master_weights")
    described = _C.optimizers()[optimizer._kernels]
    for param in group["params"] if dtype is not None or halves else ():
        state = optimizer.state.get(param, {})
        for key, option in described["filled_early"].items():
            if key in state and dtype is not None:
                state[key] = torch.full_like(state[key], optimizer.defaults[option], dtype=dtype)
            if key in state and halves and param.dtype == torch.bfloat16:
                state[REMAINDER] = torch.zeros_like(state[key], dtype=torch.int16)


def check_precision(group: Mapping[str, Any], name: str) -> None:
    """Refuses what makes no sense whatever the parameters' dtypes are, or has no kernels."""
    for key in ("stochastic_rounding", "master_weights"):
        if not isinstance(group.get(key, False), bool):
            raise TypeError(f"{name}: {key} must be a bool, got {group[key]!r}")
    if group.get("state_dtype") not in _STATE_DTYPES:
        raise ValueError(
            f"{name}: state_dtype must be None, torch.float32 or torch.bfloat16,"
            f" got {group['state_dtype']!r}"
        )
    seed = group.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise TypeError(f"{name}: seed must be an int, got {seed!r}")
    named = describe(group)
    if named and group.get("fused") is False:
        raise ValueError(f"{name}: fused=False asks for torch's own step, which has no {named}")
    if named and _load.why_not:
        raise RuntimeError(f"{name}: {named} needs kernels ({_load.why_not})")
    if named and group.get("differentiable"):
        raise ValueError(f"{name}: differentiable=True is torch's own step, which has no {named}")
