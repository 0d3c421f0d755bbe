# Written by tests/stubs.py.
import torch
from torch import optim
from torch.optim.optimizer import ParamsT
from torch.optim.rmsprop import rmsprop as rmsprop

from fusedopt.optimizer import FusedOptimizer

class RMSprop(FusedOptimizer, optim.RMSprop):
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-08,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        fused: bool | None = None,
        state_dtype: torch.dtype | None = None,
        stochastic_rounding: bool = False,
        master_weights: bool = False,
        seed: int | None = None,
        max_grad_norm: float | None = None,
    ) -> None: ...
