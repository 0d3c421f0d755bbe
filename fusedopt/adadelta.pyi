# Written by tests/stubs.py.
import torch
from torch import optim
from torch.optim.adadelta import adadelta as adadelta
from torch.optim.optimizer import ParamsT

from fusedopt.optimizer import FusedOptimizer

class Adadelta(FusedOptimizer, optim.Adadelta):
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-06,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        state_dtype: torch.dtype | None = None,
        stochastic_rounding: bool = False,
        master_weights: bool = False,
        seed: int | None = None,
        max_grad_norm: float | None = None,
    ) -> None: ...
