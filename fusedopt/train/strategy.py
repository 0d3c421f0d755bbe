"""How processes share the work: DDP, FSDP2 and ZeroRedundancyOptimizer, and one kind of checkpoint.

A checkpoint holds whole tensors, as a single process has them, so that any number of processes can
go on from it with any strategy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from fusedopt.train import world

STRATEGIES = ("ddp", "fsdp", "zero")


def shard(model: nn.Module, strategy: str | None, device: str) -> None:
    """Cuts the parameters among the processes, layer by layer, if the strategy is FSDP2."""
    if strategy != "fsdp":
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.partition(":")[0], (world.size(),))
    for child in model.children():
        if type(child).forward is not nn.Module.forward and any(True for _ in child.parameters()):
            fully_shard(child, mesh=mesh)
    fully_shard(model, mesh=mesh)


def synchronized(model: nn.Module, strategy: str | None) -> nn.Module:
    """Returns what to call in training, so that gradients become means over all processes."""
    if strategy is None or strategy == "fsdp":
        return model
    from torch.nn.parallel import DistributedDataParallel

    # It looks at the strides of dimensions of one element, too, which mean nothing.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return DistributedDataParallel(model)


def shared_optimizer(
    optimizer_class: type[Optimizer], parameters: Iterable[Any], **kwargs: Any
) -> Optimizer:
    """Returns an optimizer of which each process has a part of the state.

    Its `communicating` is called before parameters are exchanged, and returns a context in which
    they are.
    """
    from torch.distributed.optim import ZeroRedundancyOptimizer

    class Shared(ZeroRedundancyOptimizer):
        communicating: Callable[[], AbstractContextManager[None]] = staticmethod(nullcontext)

        def _sync_params(self) -> None:
            with self.communicating():
                super()._sync_params()

    optimizer = Shared(parameters, optimizer_class=optimizer_class, **kwargs)
    optimizer.defaults.update(optimizer.optim.defaults)  # schedulers look for betas there
    return optimizer


def is_cut(value: Any) -> bool:
    """Returns whether the value is a DTensor, of which this process has a part."""
    if not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def whole(content: Any) -> Any:
    """Returns nested dicts and lists with whole tensors; all processes must call it."""
    if isinstance(content, dict):
        return {key: whole(value) for key, value in content.items()}
    if isinstance(content, list):
        return [whole(value) for value in content]
    return content.full_tensor() if is_cut(content) else content


def _cut(value: Any, like: Any) -> Any:
    if not isinstance(value, Tensor) or not is_cut(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    # Every process has read the whole tensor: nothing is sent.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def cut(weights: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Returns whole weights cut as the model's are."""
    own = model.state_dict()
    return {name: _cut(value, own.get(name)) for name, value in weights.items()}


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """Returns the whole state in the first process; all processes must call it."""
    if hasattr(optimizer, "consolidate_state_dict"):  # ZeroRedundancyOptimizer
        optimizer.consolidate_state_dict(to=0)
        return optimizer.state_dict() if world.rank() == 0 else {}
    return whole(optimizer.state_dict())


def load_optimizer_state(optimizer: Optimizer, content: dict[str, Any]) -> None:
    """Loads a whole state, of which the optimizer may keep a part."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        i: {k: v if k == "step" else _cut(v, parameters[i]) for k, v in values.items()}
        for i, values in content["state"].items()
    }
    optimizer.load_state_dict({**content, "state": state})
