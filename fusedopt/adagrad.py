"""Adagrad with fusedopt's kernels."""

from torch.optim import Adagrad as TorchAdagrad
from torch.optim.adagrad import adagrad

from fusedopt.optimizer import FusedOptimizer

__all__ = ["Adagrad", "adagrad"]


class Adagrad(FusedOptimizer, TorchAdagrad):
    r"""Adagrad: rates that shrink with the sum of squared gradients.

    .. math::
        \begin{aligned}
            g &\leftarrow g + \lambda p \\
            s &\leftarrow s + g^2 \\
            p &\leftarrow p - \frac{\gamma}{1 + (t - 1) \eta} \frac{g}{\sqrt{s} + \epsilon}
        \end{aligned}

    Args:
        params: Tensors, (name, tensor) pairs, or dicts of parameter groups.
        lr: Learning rate gamma, at least 0; a number or a tensor of one element.
        lr_decay: eta, at least 0.
        weight_decay: L2 penalty lambda, at least 0.
        initial_accumulator_value: What `sum` begins with, at least 0.
        eps: epsilon, at least 0.
        maximize: Ascend instead of descend.
        foreach: Accepted as torch's; only `fused=False` makes use of it.
        differentiable: Let autograd record the step; torch's own code does that.
        fused: False runs torch's own code. Anything else runs fusedopt's kernels.
        capturable: Keep step counts on the device, for CUDA graphs; torch has no such option.

    State per parameter, of its shape and dtype: `sum`;
    and `step`, a float32 count on the CPU. Both exist from the start.

    Raises:
        ValueError: If an option is out of its range, or `params` is empty.
        RuntimeError: If `fused` is True together with `foreach` or `differentiable`.

    Example:
        >>> optimizer = fusedopt.Adagrad(model.parameters(), lr=0.01)
        >>> loss_function(model(inputs), targets).backward()
        >>> optimizer.step()

    Reference:
        Duchi et al., Adaptive Subgradient Methods for Online Learning and Stochastic
        Optimization, JMLR 12, 2011; :class:`torch.optim.Adagrad`.
    """

    _kernels = "Adagrad"
    _added_options = ("capturable",)
