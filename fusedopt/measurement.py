"""What `fusedopt.measure` answers, and its text."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fusedopt.explain import aligned


@dataclass(frozen=True)
class Timing:
    """What one implementation takes.

    Attributes:
        name: Such as ``fusedopt.AdamW`` or ``torch.optim.AdamW, fused=True``.
        seconds: Of its optimizer phase, the median.
        loop_seconds: Of a step of the loop with this implementation.
        share: `seconds` of `loop_seconds`.
    """

    name: str
    seconds: float
    loop_seconds: float
    share: float


@dataclass(frozen=True)
class Measurement:
    """What `measure` returns; `str()` makes it a table.

    Attributes:
        timings: The optimizer's own first; empty if nothing could be measured.
        loop_seconds: Of a step of the loop, the median, without the time of `measure` itself.
        phase: What the optimizer phase consists of.
        tensors: The number of gradients.
        elements: Theirs in all.
        steps: The number of steps of each copy that were timed.
        notes: What isn't as in the loop, and what couldn't be compared; or why there is no answer.
    """

    timings: list[Timing] = field(default_factory=list)
    loop_seconds: float = math.nan
    phase: str = ""
    tensors: int = 0
    elements: int = 0
    steps: int = 0
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Returns a sentence, the timings as a table with aligned columns, and the notes."""
        if not self.timings:
            return "\n".join(self.notes)
        own = self.timings[0]
        tensors = "1 tensor" if self.tensors == 1 else f"{self.tensors:,} tensors"
        cells = [["", "phase, ms", "loop, ms", "share", "loop's speed"]]
        cells += [
            [
                each.name,
                _milliseconds(each.seconds),
                _milliseconds(each.loop_seconds),
                f"{each.share:.1%}",
                f"{own.loop_seconds / each.loop_seconds:.2f}x",
            ]
            for each in self.timings
        ]
        return "\n".join(
            [
                f"{own.name} takes {own.share:.1%} of the loop ({self.phase};"
                f" {tensors}, {self.elements:,} elements)",
                aligned(cells),
                f"medians of {self.steps} steps each, on copies, by turns",
                *self.notes,
            ]
        )


def _milliseconds(seconds: float) -> str:
    """Returns three digits."""
    value = float(f"{seconds * 1e3:.3g}")
    decimals = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{min(max(0, decimals), 6)}f}"
