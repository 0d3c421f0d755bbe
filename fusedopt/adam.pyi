# Written by tests/stubs.py.
import torch
from torch import optim
from torch.optim.adam import adam as adam
from torch.optim.optimizer import ParamsT

from fusedopt.optimizer import FusedOptimizer

class Adam(FusedOptimizer, optim.Adam):
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.001,
        betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        state_dtype: torch.dtype | None = None,
        stochastic_rounding: bool = False,
        master_weights: bool = False,
        seed: int | None = None,
        max_grad_norm: float | None = None,
    ) -> None: ...
