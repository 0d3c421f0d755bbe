"""What the optimizers share: `step`, which hands all to the plan, and its way back to torch."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from fusedopt import _C
from fusedopt.fallback import SCALERS, step_by_torch

_TORCHS_WRAPPER = Optimizer.profile_hook_step
_LIGHTNING = ("lightning", "lightning_fabric", "pytorch_lightning")


class FusedOptimizer(Optimizer):
    """Base of fusedopt's optimizers, mixed in before the torch.optim class whose rule they follow.

    Construction, hooks, schedulers, `state_dict` and everything else is torch's. Only `step` is
    not, and three details around it: a loaded checkpoint doesn't choose the implementation,
    gradient scaling happens inside `step`, and copies start with an empty plan.
    """

    _kernels: ClassVar[str]  # the name under which the extension knows the rule
    _added_options: ClassVar[tuple[str, ...]] = ()  # that the torch.optim class doesn't have
    _plan_key: ClassVar[str]  # where an object keeps its plan

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._plan_key = f"_fusedopt_{cls._kernels}"

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
            and not _replaces_step(self)
            and not _has_step_hooks(self)
            and asking.f_globals.get("__name__", "").partition(".")[0] not in _LIGHTNING
            and not _unscales_otherwise(asking.f_locals)
            and any(_wants_kernels(group) for group in self.param_groups)
        )

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, value: bool) -> None:
        pass  # torch's constructors set it with fused=True; the groups decide

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """Puts torch's wrapper around `step`, which calls its hooks in a range for the profiler.

        It takes 25 µs, eight times as long as the step of one small tensor; so it is gone round
        where there are no hooks, nobody is told of ranges, and no other code can change that: a
        closure, a subclass's `step`, or what others have put in the place of torch's wrapper.
        """
        torchs = Optimizer.profile_hook_step(func)
        if func is not FusedOptimizer.step or Optimizer.profile_hook_step is not _TORCHS_WRAPPER:
            return torchs

        @functools.wraps(func)
        def step(self: FusedOptimizer, *args: Any, **kwargs: Any) -> Any:
            if (
                args
                or kwargs
                or torch.compiler.is_compiling()
                or _has_step_hooks(self)
                or _is_recorded()
                or type(self)._optimizer_step_code is not Optimizer._optimizer_step_code
            ):
                return torchs(self, *args, **kwargs)
            return func(self)

        return step

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

        Where it raises, it has changed nothing, and the message names the parameter; only torch's
        own step, where that has to run a user's code, may raise in its midst as it always does.
        """
        if torch.compiler.is_compiling():
            return _step_outside_graph(self, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scaler = self.__dict__.get("grad_scale"), self.__dict__.get("found_inf")
        plan, stepped_by_torch = plan_of(self), None
        # None: the kernels have stepped all but `stepped_by_torch`.
        try:
            while (rest := plan.step(self, *scaler, stepped_by_torch)) is not None:
                step_by_torch(self, rest, *scaler)
                if rest is True:
                    break
                stepped_by_torch = rest
        except BaseException:
            for key in SCALERS:  # a GradScaler takes them away only after a step that succeeds
                self.__dict__.pop(key, None)
            raise
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes over a state, keeping this optimizer's own choice of implementation.

        torch lets a checkpoint overwrite `fused` and `foreach`, so that one made without
        `fused=True` switches a fused optimizer back; which code runs is no part of what was
        trained.
        """
        groups_before = self.__dict__.get("param_groups")
        if groups_before is not None:
            groups_before = [dict(group) for group in groups_before]  # may be the same objects
        super().__setstate__(state)
        if groups_before is None:  # unpickled or copied
            return
        for group, before in zip(self.param_groups, groups_before, strict=False):
            for key in ("fused", "foreach", *self._added_options):
                if key in before:
                    group[key] = before[key]
                elif key in self._added_options:
                    group.pop(key, None)


def plan_of(optimizer: FusedOptimizer) -> Any:
    """Returns the extension's part of an optimizer, which copies start without."""
    plan = optimizer.__dict__.get(optimizer._plan_key)
    if plan is None:
        plan = optimizer.__dict__[optimizer._plan_key] = _C.Plan(optimizer._kernels)
    return plan


def _has_step_hooks(optimizer: Optimizer) -> bool:
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
    )


def _is_recorded() -> bool:
    """Whether a range of torch.autograd.profiler.record_function would reach anybody.

    That is one of C++'s callbacks, which all profilers and observers are, a dispatch mode, to which
    it is an operator, or the monitor of CUPTI that torch 2.13 tries out, which record_function
    calls itself.
    """
    monitor = sys.modules.get("torch.profiler._cupti_monitor")
    return (
        _C.has_record_callbacks()
        or torch._C._len_torch_dispatch_stack() > 0
        or getattr(monitor, "_monitor_singleton", None) is not None
    )


def _replaces_step(optimizer: Optimizer) -> bool:
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


def _wants_kernels(group: Any) -> bool:
    fused = group.get("fused") if isinstance(group, dict) else False
    return fused is None or bool(fused)


def signature_with(option: str, cls: type[Optimizer]) -> inspect.Signature:
    """Returns the constructor's signature with a keyword added, `fused` or `capturable`."""
    signature = inspect.signature(cls)
    added = inspect.Parameter(
        option, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=bool | None
    )
    return signature.replace(parameters=[*signature.parameters.values(), added])


def add_option(optimizer: Optimizer, option: str, value: bool | None) -> None:
    """Adds an option to an optimizer whose torch.optim class has none, if it was given.

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


@torch._disable_dynamo
def _step_outside_graph(optimizer: FusedOptimizer, closure: Callable[[], Any] | None) -> Any:
    """Steps eagerly from within code that torch.compile traces: the kernels are already fused."""
    return FusedOptimizer.step(optimizer, closure)


def __getattr__(name: str) -> Any:
    """Resolves the other names of torch.optim.optimizer."""
    return getattr(torch_optimizer, name)
