"""Right and wrong uses of fusedopt, which tests/test_typing.py checks and runs line by line.

Each wrong use is marked: checkers find an error in its line, and it raises one.
"""

import torch
from torch import Tensor
from torch.nn import Linear
from typing_extensions import assert_type

import fusedopt as optim
from fusedopt.adamw import AdamW, adamw
from fusedopt.lbfgs import LBFGS
from fusedopt.lr_scheduler import StepLR
from fusedopt.optimizer import Optimizer, ParamsT
from fusedopt.sparse_adam import SparseAdam
from fusedopt.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

model = Linear(2, 2)
params = [model.weight]

# Names: ours, torch's, and none's.
assert_type(optim.__version__, str)
optimizer = optim.AdamW(model.parameters(), lr=1e-3)
assert_type(optimizer, optim.AdamW)
assert_type(optimizer, AdamW)
optim.Adamw(params)  # error
print(optim.lr_schedulers)  # error
assert_type(optim.LBFGS(params), torch.optim.LBFGS)
assert_type(optim.LBFGS(params), LBFGS)
assert_type(optim.Muon(params), torch.optim.Muon)
assert_type(optim.SparseAdam(params), SparseAdam)
assert_type(optim.Adafactor(params), torch.optim.Adafactor)
assert_type(StepLR(optimizer, 5), torch.optim.lr_scheduler.StepLR)
assert_type(optim.lr_scheduler.StepLR(optimizer, step_size=5), StepLR)
optim.lr_scheduler.StepLr(optimizer, 5)  # error
optim.lr_scheduler.StepLR(optimizer, size=5)  # error
assert_type(optim.swa_utils.SWALR(optimizer, 0.1), SWALR)
optim.swa_utils.AverageModel(model)  # error
print(adamw)

# The same in imports.
from fusedopt.lr_scheduler import StepLr  # noqa: E402, F401  # error
from fusedopt.optimizer import ParamT  # noqa: E402, F401  # error
from fusedopt.swa_utils import AverageModel  # noqa: E402, F401  # error

# Constructors: torch's options, by name or by place, and those that torch doesn't have.
optim.SGD(params, 0.1, 0.9, nesterov=True, capturable=True)
optim.SGD(params, 0.1, 0.9, 0, 0, False, True)  # error
optim.SGD(params, learning_rate=0.1)  # error
optim.SGD(params, lr="0.1")  # error
optim.Adagrad(params, lr_decay=0.1, capturable=False, max_grad_norm=1.0)
optim.Adagrad(params, decay=0.1)  # error
optim.RMSprop(params, alpha=0.9, centered=True, fused=True)
optim.RMSprop(params, rho=0.9)  # error
optim.Adadelta(params, rho=0.9, state_dtype=torch.float32)
optim.Adadelta(params, alpha=0.9)  # error
optim.Adam([{"params": params, "lr": 0.1}], betas=(0.9, 0.99), amsgrad=True)
optim.Adam(params, beta=(0.9, 0.99))  # error
optim.AdamW(model.named_parameters(), torch.tensor(0.1), stochastic_rounding=True, seed=5)
optim.AdamW(params, weight_decy=0.1)  # error
optim.AdamW(params, max_grad_norm="1.0")  # error
optim.Adamax(params, foreach=True, master_weights=True)
optim.Adamax(params, nesterov=True)  # error
optim.RAdam(params, decoupled_weight_decay=True)
optim.RAdam(params, amsgrad=True)  # error
optim.NAdam(params, momentum_decay=0.1, fused=False)
optim.NAdam(params, momentum=0.1)  # error
optim.ASGD(params, lambd=0.1, t0=100)
optim.ASGD(params, lambda_=0.1)  # error
optim.Rprop(params, etas=(0.5, 1.2), step_sizes=(1e-6, 50))
optim.Rprop(params, weight_decay=0.1)  # error
optim.Lion(params, 1e-4, (0.9, 0.99), maximize=True, state_dtype=torch.bfloat16)
optim.Lion(params, eps=1e-8)  # error
optim.Lion(params, state_dtype="bfloat16")  # error


class Mine(optim.RMSprop):
    """A user's class."""

    def __init__(self, params: ParamsT, mine: int) -> None:
        super().__init__(params, lr=0.1, max_grad_norm=mine)


def step(optimizer: Optimizer) -> None:
    """Takes any optimizer."""
    optimizer.step()
    optimizer.zero_grad()


step(Mine(params, 1))
step(optim.Lion(params))
step(optim.Optimizer(params, {}).steps)  # error

# What has no like in torch.optim.
optimizer.max_grad_norm = 0.5
assert_type(optimizer.grad_norm, Tensor | None)
model.weight.grad = torch.ones(2, 2)
assert_type(optim.clip_grad_norm_(params, 1.0), Tensor)
optim.clip_grad_norm_(params, 1.0, norm="inf")  # error
assert_type(optim.get_total_norm(params, float("inf")), Tensor)
optim.clip_grads_with_norm_(params, 1.0, torch.tensor(2.0))
optim.clip_grad_value_(params, 0.5)
average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), dtype=torch.float32)
average.update_parameters(model)
AveragedModel(model, dtype="float32")  # error
for row in optim.explain(optimizer).rows:
    assert_type(row.elements, int)
print(optim.explain(optimizer).row)  # error
