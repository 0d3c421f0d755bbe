"""Models, and averages of torch's and of ours beside each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers import assert_identical, random
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import swa_utils as torchs

from fusedopt import _C
from fusedopt import swa_utils as ours

FUNCTIONS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "default": lambda m: {},
    "ema_multi": lambda m: {"multi_avg_fn": m.get_ema_multi_avg_fn(0.9)},
    "ema_multi_far": lambda m: {"multi_avg_fn": m.get_ema_multi_avg_fn(0.25)},
    "swa_multi": lambda m: {"multi_avg_fn": m.get_swa_multi_avg_fn()},
    "ema": lambda m: {"avg_fn": m.get_ema_avg_fn(0.9)},
    "swa": lambda m: {"avg_fn": m.get_swa_avg_fn()},
}
LERPS = ("ema_multi", "ema_multi_far", "swa_multi")
FP32, FP64, BF16, FP16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


class Model(nn.Module):
    """Parameters of these shapes, BatchNorm's buffers, and some of other kinds."""

    def __init__(self, dtype: torch.dtype = FP32) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU())
        self.list = nn.ParameterList([Parameter(torch.zeros(n)) for n in (1, 13, 130)])
        self.again = self.first  # the same module twice
        self.scale = Parameter(torch.zeros(()))
        self.tied = self.first[0].bias
        self.nothing = None
        self.register_parameter("missing", None)
        self.register_buffer("absent", None)
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("table", torch.zeros(3, 4))
        self.to(dtype)
        fill(self, 0)


def fill(model: nn.Module, seed: int) -> None:
    """New values for all that a model has."""
    with torch.no_grad():
        for i, t in enumerate([*model.parameters(), *model.buffers()]):
            new = random(t.shape, 1000 * seed + i)
            t.copy_(new if t.is_floating_point() or t.is_complex() else (100 * new).round())


def values(model: nn.Module) -> list[Tensor]:
    """All that an average has, and how often it was written."""
    found = [*model.parameters(), *model.buffers()]
    return [t.detach().clone() for t in found] + [torch.tensor([t._version for t in found])]


class Both:
    """An average of torch's and one of ours, of one model."""

    def __init__(self, model: nn.Module, function: str = "ema_multi", **options: Any) -> None:
        self.model = model
        make = FUNCTIONS[function]
        self.torchs = torchs.AveragedModel(model, **make(torchs), **options)
        self.ours = ours.AveragedModel(model, **make(ours), **options)

    def update(self, times: int = 3, *, fast: bool = True) -> None:
        """Updates both by the same values. Expects our kernels to have taken all, or nothing."""
        for t in range(times):
            fill(self.model, t + 1)
            before = values(self.ours)
            taken = _C.update_parameters(self.ours, self.model)
            assert taken is fast
            if not taken:
                assert_identical(values(self.ours), before)
                self.ours.update_parameters(self.model)
            self.torchs.update_parameters(self.model)

    def assert_same(self, ulps: float = 0) -> None:
        """The same values but for so many units in the last place of the largest."""
        assert self.ours.state_dict().keys() == self.torchs.state_dict().keys()
        for mine, theirs in zip(values(self.ours), values(self.torchs), strict=True):
            assert mine.dtype == theirs.dtype and mine.stride() == theirs.stride()
            if ulps and mine.is_floating_point() and mine.numel():
                unit = torch.finfo(mine.dtype).eps * theirs.double().abs().max().clamp(min=1)
                assert (mine.double() - theirs.double()).abs().max() <= ulps * unit
            else:
                assert_identical(mine, theirs)


def ulps_of(function: str, dtype: torch.dtype) -> float:
    """In units of the largest, as results may cancel.

    torch fuses multiplication and addition in lerp where the processor can; its other functions
    round each operation's result to 16 bits, and ours the last one's.
    """
    if function in LERPS:
        return 1
    return 0 if dtype in (FP32, FP64) else 4
