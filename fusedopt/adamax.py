"""Adamax with fusedopt's kernels."""

from torch.optim import Adamax as TorchAdamax
from torch.optim.adamax import adamax

from fusedopt.optimizer import FusedOptimizer

__all__ = ["Adamax", "adamax"]


class Adamax(FusedOptimizer, TorchAdamax):
    r"""Adamax: Adam with the greatest recent gradient in the place of the root mean square.

    .. math::
        \begin{aligned}
            g &\leftarrow g + \lambda p \\
            m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
            u &\leftarrow \max(\beta_2 u, |g| + \epsilon) \\
            p &\leftarrow p - \frac{\gamma}{1 - \beta_1^t} \, m / u
        \end{aligned}

    Args:
        params: Tensors, (name, tensor) pairs, or dicts of parameter groups.
        lr: Learning rate gamma, at least 0; a number or a tensor of one element.
        betas: beta_1 and beta_2, from 0 to below 1.
        eps: epsilon, at least 0.
        weight_decay: L2 penalty lambda, at least 0.
        maximize: Ascend instead of descend.
        foreach: Accepted as torch's; only `fused=False` makes use of it.
        capturable: As torch's, for CUDA graphs.
        differentiable: Let autograd record the step; torch's own code does that.
        fused: False runs torch's own code. Anything else runs fusedopt's kernels.

    State per parameter, of its shape and dtype: `exp_avg` (m),
    `exp_inf` (u); and `step`, a float32 count on the CPU.

    Raises:
        ValueError: If an option is out of its range, or `params` is empty.
        RuntimeError: If `fused` is True together with `foreach` or `differentiable`.

    Example:
        >>> optimizer = fusedopt.Adamax(model.parameters(), lr=1e-3)
        >>> loss_function(model(inputs), targets).backward()
        >>> optimizer.step()

    Reference:
        Kingma and Ba, Adam: A Method for Stochastic Optimization, ICLR 2015, section 7.1;
        :class:`torch.optim.Adamax`.
    """

    _kernels = "Adamax"
    _added_options = ("fused",)
