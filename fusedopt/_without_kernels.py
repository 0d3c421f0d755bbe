"""What stands for the extension where there is none: it leaves everything to torch.

Each function answers as the extension's does where torch's own code has to run.
"""

from __future__ import annotations

from typing import Any, Literal, NoReturn

from fusedopt import _load


class Plan:
    """Leaves a whole step to torch."""

    def __init__(self, optimizer: str) -> None:
        self.optimizer = optimizer

    def step(
        self,
        optimizer: Any,
        scaler: Any,
        stepped_by_torch: Any,
        max_grad_norm: float | None = None,
        clip: Any = None,
    ) -> list[Any] | bool | None:
        """Asks for the gradients' norm first, then for torch's step, and then for nothing."""
        if stepped_by_torch is not None:
            return None
        return False if max_grad_norm is not None else _everything(optimizer)

    def explain(self, optimizer: Any) -> list[tuple[int, int, str]]:
        """Says of each parameter why torch steps it."""
        groups = enumerate(optimizer.param_groups)
        return [(i, k, _load.why_not) for i, group in groups for k in range(len(group["params"]))]


def _everything(optimizer: Any) -> list[Any] | Literal[True] | None:
    """Returns what torch steps: parts of groups, or True where a user's class has part in that."""
    groups = optimizer.param_groups
    if not type(optimizer).__module__.startswith("fusedopt.") or type(groups) is not list:
        return True
    if not all(type(group) is dict and type(group["params"]) is list for group in groups):
        return True
    every = [(i, group, list(enumerate(group["params"]))) for i, group in enumerate(groups)]
    return [part for part in every if part[2]] or None


def optimizers() -> dict[str, dict[str, Any]]:
    """Returns the names of our classes; what a kernel would need to know of them is empty."""
    from fusedopt.optimizer import FusedOptimizer

    classes: list[Any] = [FusedOptimizer]
    found: dict[str, dict[str, Any]] = {}
    for cls in classes:
        classes += cls.__subclasses__()
        if "_kernels" in cls.__dict__:
            found[cls._kernels] = {"options": (), "states": (), "scalars": (), "filled_early": {}}
    return found


def isa() -> str:
    """Returns what stands for the instruction set that kernels use."""
    return "none"


def isa_built() -> list[str]:
    """Returns no instruction set."""
    return []


isa_detected = isa_built


def cuda_built() -> bool:
    """Returns that there are no CUDA kernels."""
    return False


def has_record_callbacks() -> bool:
    """Returns that somebody may be told of ranges, so that `step` and others go torch's way."""
    return True


def is_transformed() -> bool:
    """Returns that there may be a transform, so that nobody asks a tensor for its value."""
    return True


def zero_grad(*_: Any) -> bool:
    """Leaves it to torch, as the two that follow."""
    return False


update_parameters = average_tensors = zero_grad


def clip_grad_norm(*_: Any) -> None:
    """Leaves it to torch, as the four that follow."""


clip_grads_with_norm = clip_grad_value = get_total_norm = norm_part = clip_grad_norm


def refuse_nonfinite(order: float) -> NoReturn:
    """Raises what torch's clip_grad_norm_ raises."""
    raise RuntimeError(
        f"The total norm of order {order} for gradients from `parameters` is non-finite, so it"
        " cannot be clipped. To disable this error and scale the gradients by the non-finite norm"
        " anyway, set `error_if_nonfinite=False`"
    )
