"""Lion with fusedopt's kernels."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from fusedopt.optimizer import FusedOptimizer

__all__ = ["Lion"]


class Lion(FusedOptimizer, Optimizer):
    r"""Lion: steps of one size, in the direction of the sign of an average of the gradients.

    .. math::
        \begin{aligned}
            p &\leftarrow (1 - \gamma \lambda) p
                - \gamma \operatorname{sign}(\beta_1 m + (1 - \beta_1) g) \\
            m &\leftarrow \beta_2 m + (1 - \beta_2) g
        \end{aligned}

    torch.optim has no Lion. What the kernels don't cover (complex and sparse tensors, tensor
    subclasses, autograd through a step) no other code steps: `step` raises then, before it changes
    anything.

    Args:
        params: Tensors, (name, tensor) pairs, or dicts of parameter groups.
        lr: Learning rate gamma, at least 0; a number or a tensor of one element. A third to a tenth
            of AdamW's.
        betas: beta_1 and beta_2, from 0 to below 1.
        weight_decay: lambda, at least 0; three to ten times AdamW's.
        maximize: Ascend instead of descend.
        capturable: As torch's, for CUDA graphs.

    State per parameter, of its shape and dtype: `exp_avg` (m).

    Raises:
        ValueError: If an option is out of its range, or `params` is empty.

    Example:
        >>> optimizer = fusedopt.Lion(model.parameters(), lr=1e-4, weight_decay=0.1)
        >>> loss_function(model(inputs), targets).backward()
        >>> optimizer.step()

    Reference:
        Chen et al., Symbolic Discovery of Optimization Algorithms, NeurIPS 2023, arXiv 2302.06675.
    """

    _kernels = "Lion"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        for index, beta in enumerate(betas):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"Invalid beta parameter at index {index}: {beta}")
        if not weight_decay >= 0.0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "capturable": capturable,
        }
        super().__init__(params, defaults)
