"""Adadelta with fusedopt's kernels."""

from torch.optim import Adadelta as TorchAdadelta
from torch.optim.adadelta import adadelta

from fusedopt.optimizer import FusedOptimizer

__all__ = ["Adadelta", "adadelta"]


class Adadelta(FusedOptimizer, TorchAdadelta):
    r"""Adadelta: steps in the units of the parameter.

    .. math::
        \begin{aligned}
            g &\leftarrow g + \lambda p \\
            v &\leftarrow \rho v + (1 - \rho) g^2 \\
            d &= \sqrt{u + \epsilon} / \sqrt{v + \epsilon} \; g \\
            u &\leftarrow \rho u + (1 - \rho) d^2 \\
            p &\leftarrow p - \gamma d
        \end{aligned}

    Args:
        params: Tensors, (name, tensor) pairs, or dicts of parameter groups.
        lr: Factor gamma of the step, at least 0; a number or a tensor of one element.
        rho: Smoothing constant, from 0 to 1.
        eps: epsilon, at least 0.
        weight_decay: L2 penalty lambda, at least 0.
        maximize: Ascend instead of descend.
        foreach: Accepted as torch's; only `fused=False` makes use of it.
        capturable: As torch's, for CUDA graphs.
        differentiable: Let autograd record the step; torch's own code does that.
        fused: False runs torch's own code. Anything else runs fusedopt's kernels.

    State per parameter, of its shape and dtype: `square_avg` (v),
    `acc_delta` (u); and `step`, a float32 count on the CPU.

    Raises:
        ValueError: If an option is out of its range, or `params` is empty.
        RuntimeError: If `fused` is True together with `foreach` or `differentiable`.

    Example:
        >>> optimizer = fusedopt.Adadelta(model.parameters(), lr=1.0)
        >>> loss_function(model(inputs), targets).backward()
        >>> optimizer.step()

    Reference:
        Zeiler, ADADELTA: An Adaptive Learning Rate Method, arXiv 1212.5701;
        :class:`torch.optim.Adadelta`.
    """

    _kernels = "Adadelta"
    _added_options = ("fused",)
