"""Rprop with fusedopt's kernels."""

from torch.optim import Rprop as TorchRprop
from torch.optim.rprop import rprop

from fusedopt.optimizer import FusedOptimizer

__all__ = ["Rprop", "rprop"]


class Rprop(FusedOptimizer, TorchRprop):
    r"""Rprop: a step size of its own for each element, which the gradient's sign alone changes.

    .. math::
        \begin{aligned}
            d &\leftarrow \operatorname{sign}(g \, g_{prev}) \\
            \Delta &\leftarrow \operatorname{clamp}(\Delta \cdot
                \{\eta^+ \text{ if } d > 0, \; \eta^- \text{ if } d < 0, \; 1\},
                \Delta_{min}, \Delta_{max}) \\
            g &\leftarrow 0 \quad \text{where } d < 0 \\
            p &\leftarrow p - \operatorname{sign}(g) \, \Delta, \quad g_{prev} \leftarrow g
        \end{aligned}

    Args:
        params: Tensors, (name, tensor) pairs, or dicts of parameter groups.
        lr: The first step size, at least 0; a number or a tensor of one element.
        etas: eta- and eta+, by which step sizes shrink and grow: below 1 and above 1.
        step_sizes: The least and the greatest step size.
        capturable: As torch's, for CUDA graphs.
        foreach: Accepted as torch's; only `fused=False` makes use of it.
        maximize: Ascend instead of descend.
        differentiable: Let autograd record the step; torch's own code does that.
        fused: False runs torch's own code. Anything else runs fusedopt's kernels.

    State per parameter, of its shape and dtype: `prev` (g of the step before) and `step_size`
    (Delta); and `step`, a float32 count on the CPU.

    In 16 bits the sign of g * prev is that of the exact product; torch's is 0 where the product is
    too small for the dtype, so that step sizes stay as they are.

    Raises:
        ValueError: If an option is out of its range, or `params` is empty.
        RuntimeError: If `fused` is True together with `foreach` or `differentiable`.

    Example:
        >>> optimizer = fusedopt.Rprop(model.parameters(), lr=1e-2)
        >>> loss_function(model(inputs), targets).backward()
        >>> optimizer.step()

    Reference:
        Riedmiller and Braun, A direct adaptive method for faster backpropagation learning: the
        RPROP algorithm, ICNN 1993; :class:`torch.optim.Rprop`.
    """

    _kernels = "Rprop"
    _added_options = ("fused",)
