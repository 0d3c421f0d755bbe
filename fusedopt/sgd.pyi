# Written by tests/stubs.py.
import torch
from torch import optim
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd as sgd

from fusedopt.optimizer import FusedOptimizer

class SGD(FusedOptimizer, optim.SGD):
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.001,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | torch.Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        capturable: bool | None = None,
        state_dtype: torch.dtype | None = None,
        stochastic_rounding: bool = False,
        master_weights: bool = False,
        seed: int | None = None,
        max_grad_norm: float | None = None,
    ) -> None: ...
