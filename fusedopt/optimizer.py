"""What the optimizers share: `step`, which hands all to the plan."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer as Optimizer
from torch.optim import optimizer as torch_optimizer

from fusedopt import _C
from fusedopt.amp import replaces_step, unscales_by_itself
from fusedopt.checkpoint import keep_numbers, keeping_numbers
from fusedopt.constructors import add_options
from fusedopt.fallback import SCALERS, step_by_torch
from fusedopt.hooks import around, has_step_hooks, is_recorded
from fusedopt.norms import clip_factor
from fusedopt.precision import PRECISION, check_precision

_TORCHS_WRAPPER = Optimizer.profile_hook_step


class FusedOptimizer(Optimizer):
    """Base of fusedopt's optimizers, mixed in before the torch.optim class whose rule they follow.

    Construction, hooks, schedulers, `state_dict` and everything else is torch's. Only `step` is
    not, and three details around it: a loaded checkpoint doesn't choose the implementation,
    gradient scaling happens inside `step`, and copies start with an empty plan.
    """

    _kernels: ClassVar[str]  # the name under which the extension knows the rule
    _added_options: ClassVar[tuple[str, ...]] = ()  # that the torch.optim class doesn't have
    _plan_key: ClassVar[str]  # where an object keeps its plan

    max_grad_norm: float | None = None  # `step` clips gradients to this norm
    grad_norm: Tensor | None = None  # theirs before, in the last step that clipped

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._plan_key = f"_fusedopt_{cls._kernels}"
        if "_kernels" in cls.__dict__:  # one of ours, and no user's subclass
            add_options(cls, cls.__dict__.get("_added_options", ()))

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Tells GradScaler to leave unscaling and skipping to `step`.

        Not where somebody else's code runs around the kernels (an overridden or replaced `step`,
        hooks): it expects what it gets with torch.optim, gradients that the scaler has unscaled
        already, and no call where it skips. Nor where a scaler unscales in its own way, as FSDP's,
        which asks all ranks for overflows, or a closure makes gradients that aren't scaled. And
        not where Lightning asks, which refuses to clip the gradients of an optimizer that unscales;
        told No, it lets the scaler unscale first.
        """
        step = getattr(type(self).step, "__wrapped__", type(self).step)
        asking = sys._getframe(1)
        return (
            step is FusedOptimizer.step
            and not replaces_step(self)
            and not has_step_hooks(self)
            and not unscales_by_itself(asking)
            and any(_wants_kernels(group) for group in self.param_groups)
        )

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, value: bool) -> None:
        pass  # torch's constructors set it with fused=True; the groups decide

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """Puts torch's wrapper around `step`, where a call needs it (hooks.py).

        Each needs it in a subclass's `step`, and where others have replaced torch's wrapper.
        """
        torchs = Optimizer.profile_hook_step(func)
        if func is not FusedOptimizer.step or Optimizer.profile_hook_step is not _TORCHS_WRAPPER:
            return torchs

        return around(torchs, func)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs a single optimization step.

        Args:
            closure: Reevaluates the model and returns the loss; called once, gradients enabled.

        Returns:
            The closure's result, or None without one.

        Raises:
            RuntimeError: If a gradient or a state tensor doesn't fit its parameter (shape, dtype,
                device), or a parameter's elements share memory.
            KeyError: If a state lacks a tensor that the options need.
            TypeError: If an option or a state entry is of a wrong type.

        With `max_grad_norm`, given to the constructor or set as an attribute, the step is what it
        would be after `clip_grad_norm_(all parameters of this optimizer, max_grad_norm)`; `.grad`
        itself isn't clipped. `grad_norm` is then the norm before clipping, a tensor where the
        gradients are; with a GradScaler that of the unscaled gradients.

        Where it raises, it has changed nothing, and the message names the parameter; only torch's
        own step, where that has to run a user's code, may raise in its midst as it always does.
        """
        if torch.compiler.is_compiling():
            return _step_outside_graph(self, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        own = self.__dict__
        plan: Any = own.get(self._plan_key) or plan_of(self)
        scaler = own.get("grad_scale"), own.get("found_inf")
        limit: Any = own.get("max_grad_norm")
        stepped_by_torch: Any = None
        clip = norm = None
        # None: the kernels have stepped all but `stepped_by_torch`.
        try:
            while (rest := plan.step(self, scaler, stepped_by_torch, limit, clip)) is not None:
                if rest is False:
                    (clip, norm), limit = clip_factor(self, limit, scaler[0]), None
                    continue
                step_by_torch(self, rest, *scaler, clip)
                if rest is True:
                    break
                stepped_by_torch = stepped_by_torch or []
                stepped_by_torch += [param for *_, params in rest for _, param in params]
        except BaseException:
            for key in SCALERS:  # a GradScaler takes them away only after a step that succeeds
                self.__dict__.pop(key, None)
            raise
        if norm is not None:
            self.__dict__["grad_norm"] = norm
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients of all parameters, as torch.optim's.

        Args:
            set_to_none: Set them to None, rather than to zero in place.
        """
        if (
            torch.compiler.is_compiling()
            or is_recorded()
            or not _C.zero_grad(self, FusedOptimizer, set_to_none)
        ):
            super().zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch.optim's.

        Raises:
            ValueError: If its options of precision make no sense; nothing is added then.
            TypeError: If one has a wrong type.
        """
        if isinstance(param_group, dict):
            merged = {**self.defaults, **param_group}
            check_precision(merged, f"param_groups[{len(self.param_groups)}]")
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the optimizer state, as torch.optim's.

        What the kernels have use for keeps its dtype: single numbers, state in the group's
        `state_dtype`, the remainders of master weights. State in another dtype is converted. Which
        of these a group has, as which code runs, isn't loaded; only the seed of its rounding is.
        """
        with keeping_numbers(self):
            super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        """Returns what is copied and pickled."""
        state = super().__getstate__()
        if "max_grad_norm" in self.__dict__:
            state["max_grad_norm"] = self.__dict__["max_grad_norm"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes over a state, keeping this optimizer's own choice of implementation.

        torch lets a checkpoint overwrite `fused` and `foreach`, so that one made without
        `fused=True` switches a fused optimizer back; which code runs is no part of what was
        trained.
        """
        groups_before = self.__dict__.get("param_groups")
        if groups_before is None:  # unpickled or copied
            super().__setstate__(state)
            return
        kept: dict[str, Any] = {
            key: self.__dict__[key] for key in ("param_groups", "state") if key in self.__dict__
        }
        groups_before = [dict(group) for group in groups_before]  # may be the same objects
        try:
            keep_numbers(self, self._kernels, state)
            super().__setstate__(state)
        except BaseException:
            self.__dict__.update(kept)
            raise
        ours = {*self._added_options, *PRECISION} - {"seed"}
        for group, before in zip(self.param_groups, groups_before, strict=False):
            if "seed" in before:
                group.setdefault("seed", before["seed"])
            for key in ("fused", "foreach", *ours):
                if key in before:
                    group[key] = before[key]
                elif key in ours:
                    group.pop(key, None)


def plan_of(optimizer: FusedOptimizer) -> Any:
    """Returns the extension's part of an optimizer, which copies start without."""
    plan = optimizer.__dict__.get(optimizer._plan_key)
    if plan is None:
        plan = optimizer.__dict__[optimizer._plan_key] = _C.Plan(optimizer._kernels)
    return plan


def _wants_kernels(group: Any) -> bool:
    fused = group.get("fused") if isinstance(group, dict) else False
    return fused is None or bool(fused)


@torch._disable_dynamo  # type: ignore[attr-defined]
def _step_outside_graph(optimizer: FusedOptimizer, closure: Callable[[], Any] | None) -> Any:
    """Steps eagerly from within code that torch.compile traces: the kernels are already fused."""
    return FusedOptimizer.step(optimizer, closure)


if TYPE_CHECKING:
    from torch.optim.optimizer import *  # noqa: F403
    from torch.optim.optimizer import ParamsT as ParamsT
else:

    def __getattr__(name: str) -> Any:
        """Resolves the other names of torch.optim.optimizer."""
        return getattr(torch_optimizer, name)
