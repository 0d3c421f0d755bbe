"""AdamW with fusedopt's kernels."""

from torch.optim import AdamW as TorchAdamW
from torch.optim.adamw import adamw

from fusedopt.adam import Adam

__all__ = ["AdamW", "adamw"]


class AdamW(Adam, TorchAdamW):
    r"""AdamW: Adam with weight decay apart from the gradient.

    .. math::
        \begin{aligned}
            p &\leftarrow (1 - \gamma \lambda) p \\
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
        weight_decay: lambda, at least 0.
        amsgrad: Use the greatest v so far in the place of v.
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
        >>> optimizer = fusedopt.AdamW(model.parameters(), lr=1e-3)
        >>> loss_function(model(inputs), targets).backward()
        >>> optimizer.step()

    Reference:
        Loshchilov and Hutter, Decoupled Weight Decay Regularization, arXiv 1711.05101;
        :class:`torch.optim.AdamW`.
    """

    _kernels = "AdamW"
