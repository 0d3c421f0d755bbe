# Written by tests/stubs.py.
import torch
from torch import optim
from torch.optim.nadam import nadam as nadam
from torch.optim.optimizer import ParamsT

from fusedopt.optimizer import FusedOptimizer

class NAdam(FusedOptimizer, optim.NAdam):
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.002,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0,
        momentum_decay: float = 0.004,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        state_dtype: torch.dtype | None = None,
        stochastic_rounding: bool = False,
        master_weights: bool = False,
        seed: int | None = None,
        max_grad_norm: float | None = None,
    ) -> None: ...
