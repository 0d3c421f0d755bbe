"""Says which parameters run on which kernel, and why torch's own step takes the others."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from fusedopt import _C
from fusedopt.fallback import torch_class
from fusedopt.optimizer import FusedOptimizer, plan_of
from fusedopt.precision import describe


@dataclass(frozen=True)
class Row:
    """Parameters that are stepped alike.

    Attributes:
        device: Their device, such as ``cpu``.
        dtype: Their dtype, such as ``float32``.
        tensors: How many there are.
        elements: Their elements in all.
        kernel: The kernel, such as ``adamw``, or ``torch`` for torch's own step, or ``none`` where
            torch has no such optimizer.
        isa: The kernel's instruction set, or empty.
        reason: Why torch's own step takes them, or what `step` would raise; empty for a kernel.
        precision: The group's options of how numbers are stored, such as ``stochastic_rounding``.
    """

    device: str
    dtype: str
    tensors: int
    elements: int
    kernel: str
    isa: str
    reason: str
    precision: str = ""


@dataclass(frozen=True, repr=False)
class Explanation:
    """What `explain` returns: printed or shown by a notebook, it is a table.

    Attributes:
        rows: The table's rows.
    """

    rows: list[Row]

    def __repr__(self) -> str:
        """Returns the rows as a table with aligned columns."""
        names = [field.name for field in fields(Row)]
        if not any(row.precision for row in self.rows):
            names.remove("precision")
        cells = [names] + [[str(getattr(row, name)) for name in names] for row in self.rows]
        return aligned(cells)


def aligned(cells: list[list[str]]) -> str:
    """Returns lines of text whose columns begin below each other."""
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(line.rstrip() for line in lines)


def explain(optimizer: Optimizer) -> Explanation:
    """Tells which parameters run where, as a small table, and changes nothing.

    Args:
        optimizer: Any optimizer; of one that isn't fusedopt's, all parameters are torch's.

    Returns:
        The table, to be printed, with a `Row` for each device, dtype, kernel and reason.

    Raises:
        TypeError: If it is no optimizer.

    Example:
        >>> fusedopt.explain(fusedopt.AdamW(torch.nn.Linear(10, 10).parameters()))  # doctest: +SKIP
        device  dtype    tensors  elements  kernel  isa   reason
        cpu     float32  2        110       adamw   avx2
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"explain takes an optimizer, got {type(optimizer).__name__}")
    if isinstance(optimizer, FusedOptimizer):
        kernel = optimizer._kernels.lower()
        instead = "torch" if torch_class(type(optimizer)) else "none"
        found = plan_of(optimizer).explain(optimizer)
    else:
        kernel = instead = "torch"
        found = [
            (i, k, "not an optimizer of fusedopt")
            for i, group in enumerate(optimizer.param_groups)
            for k in range(len(group["params"]))
        ]
    counts: dict[tuple[str, str, str, str], list[int]] = {}
    for group_index, index, reason in found:
        param = optimizer.param_groups[group_index]["params"][index]
        precision = describe(optimizer.param_groups[group_index])
        key = (str(param.device), str(param.dtype).removeprefix("torch."), reason, precision)
        count = counts.setdefault(key, [0, 0])
        count[0] += 1
        count[1] += 0 if is_lazy(param) else param.numel()
    rows = [
        Row(
            device,
            dtype,
            tensors,
            elements,
            instead if why else kernel,
            "" if why or not device.startswith("cpu") else _C.isa(),
            why,
            precision,
        )
        for (device, dtype, why, precision), (tensors, elements) in counts.items()
    ]
    return Explanation(rows)
