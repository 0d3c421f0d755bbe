"""The optimizer phase: what a training step has beside its forward and backward pass."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from fusedopt.train.options import Options
from fusedopt.train.strategy import is_cut


def optimizer_phase(
    model: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    average: AveragedModel | None,
    options: Options,
    impl: str,
) -> None:
    """Clips, steps, drops the gradients and averages.

    Args:
        model: whose parameters have gradients.
        optimizer: clips by itself if it has a `max_grad_norm`, as fusedopt's may.
        scaler: of the loss.
        average: moving average of the model, or None.
        options: `clip_norm` is used.
        impl: whose functions are called: fusedopt's or torch's.
    """
    if options.clip_norm is not None and getattr(optimizer, "max_grad_norm", None) is None:
        scaler.unscale_(optimizer)
        _package(impl).clip_grad_norm_(model.parameters(), options.clip_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    if average is not None:
        average.update_parameters(model)


def make_ema(model: nn.Module, options: Options, impl: str) -> AveragedModel | None:
    """Returns the moving average of a model's weights and of its norms' statistics."""
    if options.ema is None:
        return None
    if impl == "fusedopt":
        from fusedopt import swa_utils
    else:
        from torch.optim import swa_utils
    update = swa_utils.get_ema_multi_avg_fn(options.ema)

    def update_kinds(averages: list[Tensor], values: list[Tensor], count: Any) -> None:
        """Updates shards and whole tensors, such as FSDP2's buffers: one call can't take both."""
        pairs = list(zip(averages, values, strict=True))
        for kind in (False, True):
            if some := [pair for pair in pairs if is_cut(pair[0]) == kind]:
                update(*map(list, zip(*some, strict=True)), count)

    function = update_kinds if options.strategy == "fsdp" else update
    return swa_utils.AveragedModel(model, multi_avg_fn=function, use_buffers=True)


def _package(impl: str) -> ModuleType:
    if impl == "fusedopt":
        import fusedopt

        return fusedopt
    return torch.nn.utils
