"""Functional optimizers: torch.distributed hands them gradients, of some parameters at a time.

DDP's `_register_fused_optim` and ZeroRedundancyOptimizer(overlap_with_ddp=True) look for a class in
torch's `functional_optim_map`. Importing that takes torch 4 s, so ours get there when it is.
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from importlib.machinery import ModuleSpec
from typing import Any

from torch import Tensor

from fusedopt.optimizer import FusedOptimizer

_Places = Sequence[tuple[int, Tensor]]  # parameters, each with the number of its group

_MAP = "torch.distributed.optim.utils"
# What torch's functional Adagrad takes, too, and makes no use of.
_IGNORED = ("warmup_lr_multiplier", "warmup_num_iters", "coalesce_grad")


class Functional:
    """Steps the parameters whose gradients it is given. Their `.grad` is left as it is.

    Several threads may step different parameters at once, as DDP's communication hooks do.

    Attributes:
        optimizer: Of all parameters, with their state; schedulers and checkpoints take it.
    """

    def __init__(
        self,
        cls: type[FusedOptimizer],
        params: Iterable[Tensor],
        *args: Any,
        _allow_empty_param_list: bool = False,
        **kwargs: Any,
    ) -> None:
        """Makes the optimizer.

        Args:
            cls: Its class, one of fusedopt's.
            params: Its parameters. Those that `step_param` is given are added.
            args: The class's other arguments.
            kwargs: The same by name.

        Raises:
            TypeError: If the class has no such argument.
            ValueError: If one is out of its range, or is for all parameters at once; or if there
                are no parameters, unless `_allow_empty_param_list` says that others will come.
        """
        if cls._kernels == "Adagrad":
            kwargs = {key: value for key, value in kwargs.items() if key not in _IGNORED}
        self._make: Callable[[Any], FusedOptimizer] = lambda some: cls(some, *args, **kwargs)
        params = list(params)
        self.optimizer = self._make([{"params": params}] if _allow_empty_param_list else params)
        _refuse_what_needs_all(self.optimizer)
        self._parts: dict[Hashable, FusedOptimizer] = {}
        # Group and place, which may have changed since.
        self._found = {param: (0, k) for k, param in enumerate(self.param_groups[0]["params"])}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:
        """The optimizer's."""
        return self.optimizer.state

    def state_dict(self) -> dict[str, Any]:
        """Returns the optimizer's."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads it into the optimizer."""
        self.optimizer.load_state_dict(state_dict)

    def step_param(self, param: Tensor, grad: Tensor | None) -> None:
        """Steps one parameter; where it is new, it joins the first group.

        One that somebody has taken out of its group isn't stepped any more.

        Args:
            param: The parameter.
            grad: What is taken for its gradient. None: nothing is stepped.

        Raises:
            ValueError: If the optimizer has an option that is for all parameters at once by now;
                and what its `step` raises.
        """
        group = self._group_of(param)
        if group is not None and grad is not None:
            self._step(param, [(group, param)], [grad])

    def step(self, gradients: Sequence[Tensor | None] | None = None) -> None:
        """Steps some or all parameters.

        Args:
            gradients: What is taken for each parameter's gradient, in the optimizer's order; who
                has None isn't stepped. Without them, it is a step by the parameters' `.grad`.

        Raises:
            ValueError: If there are more or fewer than parameters; and as `step_param`.
        """
        if gradients is None:
            self.optimizer.step()
            return
        groups = enumerate(self.param_groups)
        places = [(i, param) for i, group in groups for param in group["params"]]
        if len(places) != len(gradients):
            raise ValueError(f"gradients: {len(gradients)} were given for {len(places)} parameters")
        both = zip(places, gradients, strict=True)
        given = [(place, grad) for place, grad in both if grad is not None]
        if given:  # by objects, which a part keeps: places are others once a parameter has joined
            key = tuple(id(param) for (_, param), _ in given)
            self._step(key, [place for place, _ in given], [grad for _, grad in given])

    def _group_of(self, param: Tensor) -> int | None:
        """Returns the number of its group: where it was last, unless somebody has changed that."""
        groups = self.param_groups
        i, k = self._found.get(param, (0, 0))
        if i < len(groups) and k < len(groups[i]["params"]) and groups[i]["params"][k] is param:
            return i
        places = (
            (i, k)
            for i, group in enumerate(groups)
            for k, other in enumerate(group["params"])
            if other is param
        )
        found = next(places, None)
        if found is None and param in self._found:
            return None
        if found is None:
            groups[0]["params"].append(param)
            found = 0, len(groups[0]["params"]) - 1
        self._found[param] = found
        return found[0]

    def _step(self, key: Hashable, places: _Places, grads: list[Tensor]) -> None:
        """Steps these by an optimizer of their own, which has state and options of the one of all.

        No other parameter is touched: the next one's gradient may be accumulating meanwhile.
        """
        _refuse_what_needs_all(self.optimizer)
        params = [param for _, param in places]
        optimizer = self._parts.get(key)
        if optimizer is None:
            optimizer = self._parts.setdefault(key, self._part(params))
        by_group: dict[int, list[Tensor]] = {}
        for i, param in places:
            by_group.setdefault(i, []).append(param)
        groups = self.param_groups
        optimizer.state = self.state
        optimizer.param_groups = [{**groups[i], "params": some} for i, some in by_group.items()]
        before = [param.grad for param in params]
        try:
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
            optimizer.step()
            vars(self.optimizer)["_opt_called"] = (
                True  # or a scheduler warns that it comes before a step
            )
        finally:
            for param, own in zip(params, before, strict=True):
                param.grad = own

    def _part(self, params: list[Tensor]) -> FusedOptimizer:
        optimizer = self._make(params)
        for param, made in optimizer.state.items():  # Adagrad's constructor makes it
            self.state.setdefault(param, made)
        return optimizer


def _refuse_what_needs_all(optimizer: FusedOptimizer) -> None:
    if optimizer.max_grad_norm is not None:
        raise ValueError(
            "max_grad_norm: the norm of all gradients isn't known when the first parameters are"
            " stepped; clip in the loop, with an optimizer that steps there"
        )
    if any(group.get("stochastic_rounding") for group in optimizer.param_groups):
        raise ValueError(
            "stochastic_rounding: its noise depends on a parameter's place among all, which isn't"
            " known where parameters come one by one"
        )


class Maker:
    """What torch's map has for a class of ours: it makes functional optimizers of that class."""

    def __init__(self, cls: type[FusedOptimizer]) -> None:
        self._cls = cls

    def __call__(
        self,
        params: Iterable[Tensor],
        *args: Any,
        _allow_empty_param_list: bool = False,
        **kwargs: Any,
    ) -> Functional:
        """Makes one; see Functional."""
        return Functional(
            self._cls, params, *args, _allow_empty_param_list=_allow_empty_param_list, **kwargs
        )

    # DistributedOptimizer, which steps by remote calls, has TorchScript compile what the map has
    # for a class, if that is another one (!=). It is to send the class, as it would without it.
    def __ne__(self, other: object) -> bool:
        return other is not self._cls and other is not self

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self._cls,)


def _same(cls: type[FusedOptimizer]) -> type[FusedOptimizer]:
    return cls


def register_when_imported(classes: Iterable[type[FusedOptimizer]]) -> None:
    """Puts classes into torch's map: when it is imported, or at once if it has been."""
    finder = _Finder({cls: Maker(cls) for cls in classes})
    sys.meta_path.insert(0, finder)
    if _MAP in sys.modules:
        finder.register(sys.modules[_MAP])


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the map's module as others do, but with a loader that registers the classes, too.

    It stays in sys.meta_path: an import in another thread, which goes through that list, would miss
    the entry after one that is removed.
    """

    def __init__(self, makers: dict[type[FusedOptimizer], Maker]) -> None:
        self._makers = makers

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Finds it; other modules are others' to find."""
        if fullname != _MAP:
            return None
        others = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
        finds = (getattr(finder, "find_spec", None) for finder in others)
        found = (find(fullname, path, target) for find in finds if find)
        spec = next(filter(None, found), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.register)
        return spec

    def register(self, module: Any) -> None:
        """Registers the classes, but for those that somebody else has; if torch still does that."""
        register = getattr(module, "register_functional_optim", None)
        if register is not None:
            for cls, maker in self._makers.items():
                register(cls, maker)


class _Loader(importlib.abc.Loader):
    """Loads a module with another loader, which the module then has, and calls a function."""

    def __init__(self, loader: Any, then: Callable[[Any], None]) -> None:
        self._loader, self._then = loader, then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> Any:
        """Makes it."""
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        """Runs its code."""
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._then(module)
