"""RAdam with fusedopt's kernels."""

from torch.optim import RAdam as TorchRAdam
from torch.optim.radam import radam

from fusedopt.optimizer import FusedOptimizer

__all__ = ["RAdam", "radam"]


class RAdam(FusedOptimizer, TorchRAdam):
    r"""RAdam: Adam that divides only as far as it knows the variance of the gradients.

    .. math::
        \begin{aligned}
            g &\leftarrow g + \lambda p \quad
                \text{(decoupled: } p \leftarrow (1 - \gamma \lambda) p) \\
            m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
            v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
            \rho_\infty &= 2 / (1 - \beta_2) - 1, \quad
            \rho_t = \rho_\infty - 2 t \beta_2^t / (1 - \beta_2^t) \\
            r_t &= \sqrt{\frac{(\rho_t - 4)(\rho_t - 2)\rho_\infty}
                {(\rho_\infty - 4)(\rho_\infty - 2)\rho_t}} \\
            p &\leftarrow p - \frac{\gamma}{1 - \beta_1^t} \, m \cdot
                \begin{cases} r_t \sqrt{1 - \beta_2^t} / (\sqrt{v} + \epsilon)
                & \rho_t > 5 \\ 1 & \text{else} \end{cases}
        \end{aligned}

    Args:
        params: Tensors, (name, tensor) pairs, or dicts of parameter groups.
        lr: Learning rate gamma, at least 0; a number or a tensor of one element.
        betas: beta_1 and beta_2, from 0 to below 1.
        eps: epsilon, at least 0.
        weight_decay: L2 penalty lambda, or decay of the parameter, at least 0.
        decoupled_weight_decay: Decay the parameter, as AdamW does, and not by the gradient.
        maximize: Ascend instead of descend.
        foreach: Accepted as torch's; only `fused=False` makes use of it.
        capturable: As torch's, for CUDA graphs.
        differentiable: Let autograd record the step; torch's own code does that.
        fused: False runs torch's own code. Anything else runs fusedopt's kernels.

    State per parameter, of its shape and dtype: `exp_avg` (m),
    `exp_avg_sq` (v); and `step`, a float32 count on the CPU.

    Raises:
        ValueError: If an option is out of its range, or `params` is empty.
        RuntimeError: If `fused` is True together with `foreach` or `differentiable`.

    Example:
        >>> optimizer = fusedopt.RAdam(model.parameters(), lr=1e-3)
        >>> loss_function(model(inputs), targets).backward()
        >>> optimizer.step()

    Reference:
        Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, ICLR 2020, arXiv
        1908.03265; :class:`torch.optim.RAdam`.
    """

    _kernels = "RAdam"
    _added_options = ("fused",)
