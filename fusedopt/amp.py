"""What a GradScaler is told: whether `step` unscales gradients itself."""

from __future__ import annotations

from collections.abc import Mapping
from types import FrameType
from typing import Any

from torch.amp import GradScaler
from torch.optim import Optimizer

_LIGHTNING = ("lightning", "lightning_fabric", "pytorch_lightning")


def unscales_by_itself(asking: FrameType) -> bool:
    """Whether the code that asks, a scaler's `step` or Lightning, unscales in its own way."""
    module = asking.f_globals.get("__name__", "").partition(".")[0]
    return module in _LIGHTNING or _unscales_otherwise(asking.f_locals)


def replaces_step(optimizer: Optimizer) -> bool:
    """Whether the object has another `step` than its class, as Accelerate gives it to see calls.

    A scheduler's, which only notes that it was called, doesn't count.
    """
    step = optimizer.__dict__.get("step")
    if step is None:
        return False
    inside = "__wrapped__" if hasattr(step, "_wrapped_by_lr_sched") else "__func__"
    return getattr(step, inside, None) is not type(optimizer).step


def _unscales_otherwise(asking: Mapping[str, Any]) -> bool:
    """Whether a GradScaler that asks unscales or looks for overflows by code of its own.

    Or has a closure to hand on. It asks in its `step`, whose variables these are.
    """
    scaler = asking.get("self")
    if not isinstance(scaler, GradScaler):
        return False
    if asking.get("args") or asking.get("kwargs"):
        return True
    own = getattr(scaler, "__dict__", {})
    return any(
        name in own or getattr(type(scaler), name, None) is not getattr(GradScaler, name, None)
        for name in ("unscale_", "_unscale_grads_", "_check_inf_per_device", "_maybe_opt_step")
    )
