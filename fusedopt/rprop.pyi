# Written by tests/stubs.py.
import torch
from torch import optim
from torch.optim.optimizer import ParamsT
from torch.optim.rprop import rprop as rprop

from fusedopt.optimizer import FusedOptimizer

class Rprop(FusedOptimizer, optim.Rprop):
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.01,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-06, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        state_dtype: torch.dtype | None = None,
        stochastic_rounding: bool = False,
        master_weights: bool = False,
        seed: int | None = None,
        max_grad_norm: float | None = None,
    ) -> None: ...
