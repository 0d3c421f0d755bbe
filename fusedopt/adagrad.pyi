# Written by tests/stubs.py.
import torch
from torch import optim
from torch.optim.adagrad import adagrad as adagrad
from torch.optim.optimizer import ParamsT

from fusedopt.optimizer import FusedOptimizer

class Adagrad(FusedOptimizer, optim.Adagrad):
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.01,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        capturable: bool | None = None,
        state_dtype: torch.dtype | None = None,
        stochastic_rounding: bool = False,
        master_weights: bool = False,
        seed: int | None = None,
        max_grad_norm: float | None = None,
    ) -> None: ...
