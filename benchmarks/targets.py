"""What the library is meant to reach on the CPU, and whether a result file shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.measure import CONTIGUOUS
from benchmarks.results import Row

Find = Callable[..., Row | None]


@dataclass(frozen=True)
class Verdict:
    """One target, what was measured, and whether that is enough."""

    what: str
    target: str
    measured: float
    text: str
    met: bool


def _ratio(row: Row, at_least: float) -> Verdict:
    value = row["ratio"]["median"]
    what = f"{row['optimizer']}, {row['workload']}, {row['dtype']}: torch's best / ours"
    return Verdict(what, f"≥ {at_least:g}", value, f"{value:.2f} ({row['torch_best']})",
                   value >= at_least)  # fmt: skip


def _floor(row: Row, at_least: float) -> Verdict:
    value = row["floor_percent"]
    what = f"{row['optimizer']}, {row['workload']}, {row['dtype']}: share of the floor"
    return Verdict(what, f"≥ {at_least:g} %", value, f"{value:.0f} %", value >= at_least)


_SMALL = {"adamw": 40, "adam": 40, "adagrad": 30, "sgd-momentum": 15, "rmsprop": 60,
          "adadelta": 100}  # fmt: skip
_FUSED = ("sgd-momentum", "adagrad", "adam", "adamw")
_SLOW_IN_TORCH = {"resnet50": {"rmsprop": 2.2, "adadelta": 3.5},
                  "gpt2": {"rmsprop": 2.8, "adadelta": 5.0}}  # fmt: skip
_LOW_PRECISION = {"sgd": 1, "sgd-momentum": 1, "adagrad": 1, "adam": 1, "adamw": 1, "rmsprop": 5,
                  "adadelta": 5}  # fmt: skip


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Compares fusedopt's rows with the most threads with the targets; skips what wasn't run."""
    most = max((row["threads"] for row in rows), default=0)
    table = {
        (row["optimizer"], row["workload"], row["dtype"], row["implementation"]): row
        for row in rows
        if row["threads"] == most and row["device"] == "cpu" and "seconds" in row
    }

    def find(optimizer: str, workload: str, dtype: str, name: str = "fusedopt") -> Row | None:
        return table.get((optimizer, workload, dtype, name))

    return [*_small(find), *_large(find), *_low_precision(find), *_layouts(find)]


def _small(find: Find) -> Iterator[Verdict]:
    for dtype in ("float32", "float64"):
        for optimizer, target in _SMALL.items():
            if (row := find(optimizer, "1000x64", dtype)) and row.get("ratio"):
                yield _ratio(row, target)
        for workload, target in (("1", 2), ("10000x16", 40)):
            if (row := find("adamw", workload, dtype)) and row.get("ratio"):
                yield _ratio(row, target)


def _large(find: Find) -> Iterator[Verdict]:
    for dtype in ("float32", "float64"):
        for workload, slow in _SLOW_IN_TORCH.items():
            for optimizer, target in {**dict.fromkeys(_FUSED, 1.0), **slow}.items():
                if (row := find(optimizer, workload, dtype)) and row.get("ratio"):
                    yield _ratio(row, target)
                    if optimizer in _FUSED:
                        yield _floor(row, 95)


def _low_precision(find: Find) -> Iterator[Verdict]:
    for dtype in ("bfloat16", "float16"):
        for optimizer, target in _LOW_PRECISION.items():
            if (row := find(optimizer, "16m", dtype)) and row.get("ratio"):
                yield _ratio(row, target)
                yield _floor(row, 90)


def _layouts(find: Find) -> Iterator[Verdict]:
    for optimizer in _SMALL:
        strided = find(optimizer, "resnet50-nhwc", "float32")
        plain = find(optimizer, "resnet50-nhwc", "float32", CONTIGUOUS)
        if strided and plain:
            value = strided["seconds"]["median"] / plain["seconds"]["median"]
            what = f"{optimizer}, ResNet-50 fp32: channels_last / contiguous"
            yield Verdict(what, "≤ 1.05", value, f"{value:.2f}", value <= 1.05)
