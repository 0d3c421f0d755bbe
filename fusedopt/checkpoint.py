"""Loading a checkpoint: what torch's `load_state_dict` would change, and ours doesn't."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fusedopt import _C

_LOADED = "_fusedopt_loaded"  # the checkpoint that an optimizer is about to load


@contextmanager
def keeping_numbers(optimizer: Optimizer, kernels: str) -> Iterator[None]:
    """Has `keep_numbers` find the checkpoint that is loaded inside, as torch's hooks leave it."""
    if len(_C.optimizers()[kernels]["scalars"]) < 2:
        yield
        return

    def note(_: Optimizer, checkpoint: dict[str, Any]) -> None:
        optimizer.__dict__[_LOADED] = checkpoint

    hook = optimizer.register_load_state_dict_pre_hook(note)  # the last of them
    try:
        yield
    finally:
        hook.remove()
        optimizer.__dict__.pop(_LOADED, None)


def keep_numbers(optimizer: Optimizer, kernels: str, loaded: Mapping[str, Any]) -> None:
    """Gives single numbers of a loaded state the dtype back that they were saved in, or float32.

    torch does so for the step count, and casts the others to their parameter's dtype: NAdam's
    product of momenta and ASGD's learning rate lose all but 8 bits with each bfloat16 checkpoint.
    """
    checkpoint = optimizer.__dict__.get(_LOADED)
    if checkpoint is None:
        return
    saved_groups, groups = checkpoint["param_groups"], loaded["param_groups"]
    ids = chain.from_iterable(group["params"] for group in saved_groups)
    params = chain.from_iterable(group["params"] for group in groups)
    keys = _C.optimizers()[kernels]["scalars"][1:]  # without the step count
    for saved_id, param in zip(ids, params, strict=True):
        saved, state = checkpoint["state"].get(saved_id), loaded["state"].get(param)
        if not isinstance(saved, Mapping) or not isinstance(state, dict):
            continue
        for key in keys:
            number, cast = saved.get(key), state.get(key)
            if not isinstance(number, Tensor) or not isinstance(cast, Tensor):
                continue
            dtype = torch.promote_types(number.dtype, torch.float32)
            if number.is_floating_point() and cast.dtype != dtype:
                state[key] = number.detach().to(cast.device, dtype)
