"""RMSprop with fusedopt's kernels."""

from torch.optim import RMSprop as TorchRMSprop
from torch.optim.rmsprop import rmsprop

from fusedopt.optimizer import FusedOptimizer

__all__ = ["RMSprop", "rmsprop"]


class RMSprop(FusedOptimizer, TorchRMSprop):
    r"""RMSprop: gradients divided by a running root mean square of themselves.

    .. math::
        \begin{aligned}
            g &\leftarrow g + \lambda p \\
            v &\leftarrow \alpha v + (1 - \alpha) g^2 \\
            a &\leftarrow \alpha a + (1 - \alpha) g \quad \text{(centered; else } a = 0) \\
            b &\leftarrow \mu b + g / (\sqrt{v - a^2} + \epsilon) \\
            p &\leftarrow p - \gamma b
        \end{aligned}

    Args:
        params: Tensors, (name, tensor) pairs, or dicts of parameter groups.
        lr: Learning rate gamma, at least 0; a number or a tensor of one element.
        alpha: Smoothing constant, at least 0.
        eps: epsilon, at least 0.
        weight_decay: L2 penalty lambda, at least 0.
        momentum: mu, at least 0.
        centered: Divide by an estimate of the standard deviation.
        maximize: Ascend instead of descend.
        foreach: Accepted as torch's; only `fused=False` makes use of it.
        capturable: As torch's, for CUDA graphs.
        differentiable: Let autograd record the step; torch's own code does that.
        fused: False runs torch's own code. Anything else runs fusedopt's kernels.

    State per parameter, of its shape and dtype: `square_avg`,
    `momentum_buffer` with momentum, `grad_avg` if centered; and `step`, a float32 count on the CPU.

    Raises:
        ValueError: If an option is out of its range, or `params` is empty.
        RuntimeError: If `fused` is True together with `foreach` or `differentiable`.

    Example:
        >>> optimizer = fusedopt.RMSprop(model.parameters(), lr=0.01)
        >>> loss_function(model(inputs), targets).backward()
        >>> optimizer.step()

    Reference:
        Tieleman and Hinton, COURSERA Neural Networks for Machine Learning, lecture 6e, 2012;
        centered: Graves, arXiv 1308.0850; :class:`torch.optim.RMSprop`.
    """

    _kernels = "RMSprop"
    _added_options = ("fused",)
