# Written by tests/stubs.py.
import torch
from torch import optim
from torch.optim.adamw import adamw as adamw
from torch.optim.optimizer import ParamsT

from fusedopt.adam import Adam

class AdamW(Adam, optim.AdamW):
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.001,
        betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        state_dtype: torch.dtype | None = None,
        stochastic_rounding: bool = False,
        master_weights: bool = False,
        seed: int | None = None,
        max_grad_norm: float | None = None,
    ) -> None: ...
