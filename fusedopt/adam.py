"""Adam with fusedopt's kernels."""

from torch.optim import Adam as TorchAdam
from torch.optim.adam import adam

from fusedopt.optimizer import FusedOptimizer

__all__ = ["Adam", "adam"]


class Adam(FusedOptimizer, TorchAdam):
    r"""Adam: running estimates of first and second moments.

    .. math::
        \begin{aligned}
            g &\leftarrow g + \lambda p \\
            m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
            v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
            p &\leftarrow p - \frac{\gamma}{1 - \beta_1^t}
                \frac{m}{\sqrt{v} / \sqrt{1 - \beta_2^t} + \epsilon}
        \end{aligned}

    Args:
        params: Tensors, (name, tensor) pairs, or dicts of parameter groups.
        lr: Learning rate gamma, at least 0; a number or a tensor of one element.
        betas: (beta1, beta2), each in [0, 1); both floats or both tensors of one element.
        eps: epsilon, at least 0.
        weight_decay: L2 penalty lambda, at least 0.
        amsgrad: Use the greatest v so far in the place of v.
        decoupled_weight_decay: Decay as AdamW does.
        maximize: Ascend instead of descend.
        foreach: Accepted as torch's; only `fused=False` makes use of it.
        capturable: As torch's, for CUDA graphs.
        differentiable: Let autograd record the step; torch's own code does that.
        fused: False runs torch's own code. Anything else runs fusedopt's kernels.

    State per parameter, of its shape and dtype: `exp_avg` (m),
    `exp_avg_sq` (v), `max_exp_avg_sq` with amsgrad; and `step`, a float32 count on the CPU.

    Raises:
        ValueError: If an option is out of its range, or `params` is empty.
        RuntimeError: If `fused` is True together with `foreach` or `differentiable`.

    Example:
        >>> optimizer = fusedopt.Adam(model.parameters(), lr=1e-3)
        >>> loss_function(model(inputs), targets).backward()
        >>> optimizer.step()

    Reference:
        Kingma and Ba, Adam: A Method for Stochastic Optimization, arXiv 1412.6980; amsgrad: Reddi
        et al., On the Convergence of Adam and Beyond, ICLR 2018; :class:`torch.optim.Adam`.
    """

    _kernels = "Adam"
