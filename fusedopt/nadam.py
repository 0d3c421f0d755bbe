"""NAdam with fusedopt's kernels."""

from torch.optim import NAdam as TorchNAdam
from torch.optim.nadam import nadam

from fusedopt.optimizer import FusedOptimizer

__all__ = ["NAdam", "nadam"]


class NAdam(FusedOptimizer, TorchNAdam):
    r"""NAdam: Adam with Nesterov's momentum, whose weight grows with the steps.

    .. math::
        \begin{aligned}
            g &\leftarrow g + \lambda p \quad
                \text{(decoupled: } p \leftarrow (1 - \gamma \lambda) p) \\
            \mu_t &= \beta_1 (1 - 0.96^{t \psi} / 2), \quad
                \Pi \leftarrow \Pi \mu_t \\
            m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
            v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
            p &\leftarrow p - \gamma \left(\frac{1 - \mu_t}{1 - \Pi} g
                + \frac{\mu_{t+1}}{1 - \Pi \mu_{t+1}} m\right)
                / \left(\sqrt{v / (1 - \beta_2^t)} + \epsilon\right)
        \end{aligned}

    Args:
        params: Tensors, (name, tensor) pairs, or dicts of parameter groups.
        lr: Learning rate gamma, at least 0; a number or a tensor of one element.
        betas: beta_1 and beta_2, from 0 to below 1.
        eps: epsilon, at least 0.
        weight_decay: L2 penalty lambda, or decay of the parameter, at least 0.
        momentum_decay: psi, how fast mu_t grows from beta_1 / 2 to beta_1, at least 0.
        decoupled_weight_decay: Decay the parameter, as AdamW does, and not by the gradient.
        foreach: Accepted as torch's; only `fused=False` makes use of it.
        maximize: Ascend instead of descend.
        capturable: As torch's, for CUDA graphs.
        differentiable: Let autograd record the step; torch's own code does that.
        fused: False runs torch's own code. Anything else runs fusedopt's kernels.

    State per parameter, of its shape and dtype: `exp_avg` (m), `exp_avg_sq` (v); and, each one
    float32 on the CPU, `step`, a count, and `mu_product` (the product of all mu_t so far).

    Raises:
        ValueError: If an option is out of its range, or `params` is empty.
        RuntimeError: If `fused` is True together with `foreach` or `differentiable`.

    Example:
        >>> optimizer = fusedopt.NAdam(model.parameters(), lr=2e-3)
        >>> loss_function(model(inputs), targets).backward()
        >>> optimizer.step()

    Reference:
        Dozat, Incorporating Nesterov Momentum into Adam, ICLR Workshop 2016, OpenReview
        OM0jvwB8jIp57ZJjtNEZ; :class:`torch.optim.NAdam`.
    """

    _kernels = "NAdam"
    _added_options = ("fused",)
