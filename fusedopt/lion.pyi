# Written by tests/stubs.py.
import torch
from torch import optim
from torch.optim.optimizer import ParamsT

from fusedopt.optimizer import FusedOptimizer

class Lion(FusedOptimizer, optim.Optimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.0001,
        betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        capturable: bool = False,
        state_dtype: torch.dtype | None = None,
        stochastic_rounding: bool = False,
        master_weights: bool = False,
        seed: int | None = None,
        max_grad_norm: float | None = None,
    ) -> None: ...
