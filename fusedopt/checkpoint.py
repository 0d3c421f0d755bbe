"""Loading a checkpoint: what torch's `load_state_dict` would change, and ours doesn't."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fusedopt import _C
from fusedopt.precision import REMAINDER

_LOADED = "_fusedopt_loaded"  # the checkpoint that an optimizer is about to load


@contextmanager
def keeping_numbers(optimizer: Optimizer) -> Iterator[None]:
    """Has `keep_numbers` find the checkpoint that is loaded inside, as torch's hooks leave it."""

    def note(_: Optimizer, checkpoint: dict[str, Any]) -> None:
        optimizer.__dict__[_LOADED] = checkpoint

    hook = optimizer.register_load_state_dict_pre_hook(note)  # the last of them
    try:
        yield
    finally:
        hook.remove()
        optimizer.__dict__.pop(_LOADED, None)


def keep_numbers(optimizer: Optimizer, kernels: str, loaded: Mapping[str, Any]) -> None:
    """Gives a loaded state the dtypes back that this optimizer has use for.

    torch casts all that is saved to the parameter's dtype, but for the step count. Ours are:

    - single numbers: as they were saved, or float32. NAdam's product of momenta and ASGD's learning
      rate lose all but 8 bits with each bfloat16 checkpoint.
    - state of the parameter's size: the group's `state_dtype`, from what was saved.
    - `param_remainder`: int16, if the group has `master_weights`, and else left out.
    """
    checkpoint = optimizer.__dict__.get(_LOADED)
    if checkpoint is None:
        return
    described = _C.optimizers()[kernels]
    groups = checkpoint["param_groups"], loaded["param_groups"], optimizer.param_groups
    for saved_group, group, own in zip(*groups, strict=True):
        for saved_id, param in zip(saved_group["params"], group["params"], strict=True):
            saved, state = checkpoint["state"].get(saved_id), loaded["state"].get(param)
            if isinstance(saved, Mapping) and isinstance(state, dict):
                _keep(saved, state, described["scalars"][1:], torch.float32, widen=True)
                dtype = own.get("state_dtype") or param.dtype
                _keep(saved, state, described["states"], dtype, widen=False)
                _keep_remainder(saved, state, bool(own.get("master_weights")))


def _keep(
    saved: Mapping[str, Any],
    state: dict[str, Any],
    keys: Iterator[str] | tuple[str, ...],
    dtype: torch.dtype,
    *,
    widen: bool,
) -> None:
    """Takes saved tensors in the place of what torch has cast, in that dtype, or also a wider."""
    for key in keys:
        number, cast = saved.get(key), state.get(key)
        if not isinstance(number, Tensor) or not isinstance(cast, Tensor):
            continue
        wanted = torch.promote_types(number.dtype, dtype) if widen else dtype
        if number.is_floating_point() and cast.dtype != wanted:
            state[key] = number.detach().to(cast.device, wanted)


def _keep_remainder(saved: Mapping[str, Any], state: dict[str, Any], wanted: bool) -> None:
    remainder, cast = saved.get(REMAINDER), state.get(REMAINDER)
    if isinstance(remainder, Tensor) and isinstance(cast, Tensor):
        if wanted and remainder.dtype == torch.int16:
            state[REMAINDER] = remainder.detach().to(cast.device)
        else:  # of a run without it, or one that torch has cast
            del state[REMAINDER]
