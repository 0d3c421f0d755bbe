"""SGD with fusedopt's kernels."""

from torch.optim import SGD as TorchSGD
from torch.optim.sgd import sgd

from fusedopt.optimizer import FusedOptimizer

__all__ = ["SGD", "sgd"]


class SGD(FusedOptimizer, TorchSGD):
    r"""Stochastic gradient descent with momentum.

    .. math::
        \begin{aligned}
            g &\leftarrow g + \lambda p \\
            b &\leftarrow \mu b + (1 - \tau) g \quad (b = g \text{ at first}) \\
            p &\leftarrow p - \gamma \,(g + \mu b \text{ with nesterov, else } b)
        \end{aligned}

    Args:
        params: Tensors, (name, tensor) pairs, or dicts of parameter groups.
        lr: Learning rate gamma, at least 0; a number or a tensor of one element.
        momentum: mu, at least 0; 0 keeps no state.
        dampening: tau; 0 is needed for Nesterov's momentum.
        weight_decay: L2 penalty lambda, at least 0.
        nesterov: Use Nesterov's momentum.
        maximize: Ascend instead of descend.
        foreach: Accepted as torch's; only `fused=False` makes use of it.
        differentiable: Let autograd record the step; torch's own code does that.
        fused: False runs torch's own code. Anything else runs fusedopt's kernels.
        capturable: For CUDA graphs, which can capture a step with it or without.

    State per parameter, of its shape and dtype:
    `momentum_buffer`, with momentum only.

    Raises:
        ValueError: If an option is out of its range, or `params` is empty.
        RuntimeError: If `fused` is True together with `foreach` or `differentiable`.

    Example:
        >>> optimizer = fusedopt.SGD(model.parameters(), lr=0.1)
        >>> loss_function(model(inputs), targets).backward()
        >>> optimizer.step()

    Reference:
        Sutskever et al., On the importance of initialization and momentum in deep learning,
        ICML 2013; :class:`torch.optim.SGD`.
    """

    _kernels = "SGD"
    _added_options = ("capturable",)
