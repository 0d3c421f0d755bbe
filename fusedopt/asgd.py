"""ASGD with fusedopt's kernels."""

from torch.optim import ASGD as TorchASGD
from torch.optim.asgd import asgd

from fusedopt.optimizer import FusedOptimizer

__all__ = ["ASGD", "asgd"]


class ASGD(FusedOptimizer, TorchASGD):
    r"""ASGD: stochastic gradient descent that keeps an average of the parameters.

    .. math::
        \begin{aligned}
            g &\leftarrow g + \lambda p \\
            p &\leftarrow (1 - \lambda_d \eta) p - \eta g \\
            ax &\leftarrow ax + \mu (p - ax) \\
            \eta &\leftarrow \gamma / (1 + \lambda_d \gamma t)^\alpha, \quad
                \mu \leftarrow 1 / \max(1, t - t_0)
        \end{aligned}

    Args:
        params: Tensors, (name, tensor) pairs, or dicts of parameter groups.
        lr: Learning rate gamma, at least 0; a number or a tensor of one element.
        lambd: lambda_d, the decay of the parameter and of the learning rate.
        alpha: alpha, the power of the learning rate's decay.
        t0: The step after which `ax` is an average; before, it is the parameter.
        weight_decay: L2 penalty lambda, at least 0.
        foreach: Accepted as torch's; only `fused=False` makes use of it.
        maximize: Ascend instead of descend.
        differentiable: Let autograd record the step; torch's own code does that.
        capturable: As torch's, for CUDA graphs.
        fused: False runs torch's own code. Anything else runs fusedopt's kernels.

    State per parameter, of its shape and dtype: `ax`, the averaged parameter, which nothing reads
    but you; and, each one float32 where the parameter is, `step`, a count, `eta` and `mu`.

    Raises:
        ValueError: If an option is out of its range, or `params` is empty.
        RuntimeError: If `fused` is True together with `foreach` or `differentiable`.

    Example:
        >>> optimizer = fusedopt.ASGD(model.parameters(), lr=1e-2, t0=1000)
        >>> loss_function(model(inputs), targets).backward()
        >>> optimizer.step()

    Reference:
        Polyak and Juditsky, Acceleration of stochastic approximation by averaging, SIAM Journal on
        Control and Optimization 30, 1992; :class:`torch.optim.ASGD`.
    """

    _kernels = "ASGD"
    _added_options = ("fused",)
