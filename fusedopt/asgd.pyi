# Written by tests/stubs.py.
import torch
from torch import optim
from torch.optim.asgd import asgd as asgd
from torch.optim.optimizer import ParamsT

from fusedopt.optimizer import FusedOptimizer

class ASGD(FusedOptimizer, optim.ASGD):
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.01,
        lambd: float = 0.0001,
        alpha: float = 0.75,
        t0: float = 1000000.0,
        weight_decay: float = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        *,
        fused: bool | None = None,
        state_dtype: torch.dtype | None = None,
        stochastic_rounding: bool = False,
        master_weights: bool = False,
        seed: int | None = None,
        max_grad_norm: float | None = None,
    ) -> None: ...
