"""What the library is meant to reach on the CPU and on CUDA, and whether result files show it."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from benchmarks import tables
from benchmarks.results import Row

RUNS = 5  # a target is for the median of at least as many
HEAD = "torch's fastest path / ours, and % of floor"
CUDA_HEAD = "torch's fastest path / ours, % of a device-to-device copy's bandwidth, syncs"
STATE_CHECKS = "state objects checked at each step: yes, inside all figures here"


@dataclass(frozen=True)
class Target:
    """One measure that a step must reach.

    Attributes:
        what: In words.
        workload: Of which workload; "training" is the whole training step.
        dtype: Of parameters and state.
        measure: "ratio", "floor" or "layout"; on CUDA also "host", "done" and "syncs".
        bounds: The figure for each optimizer: the least, or of "layout" and "syncs" the largest.
        against_fused: Of which optimizers torch's fused path is what is compared with; of the
            others it is whichever of torch's is fastest.
    """

    what: str
    workload: str
    dtype: str
    measure: str
    bounds: Mapping[str, float]
    against_fused: Container[str] = ()

    @property
    def is_limit(self) -> bool:
        """Whether less is better."""
        return self.measure in ("layout", "syncs")


@dataclass(frozen=True)
class Verdict:
    """One target of one optimizer, and what was measured, if it was."""

    target: Target
    optimizer: str
    bound: float
    measured: float | None

    @property
    def met(self) -> bool:
        """Whether it is enough; what wasn't measured isn't."""
        if self.measured is None:
            return False
        if self.target.is_limit:
            return self.measured <= self.bound
        return self.measured >= self.bound

    @property
    def text(self) -> str:
        """Mark, figure and bound; never rounded to a bound that was missed."""
        layout, percent = self.target.is_limit, self.target.measure == "floor"
        unit, digits = (" %", 0) if percent else ("", 1 if self.target.measure == "syncs" else 2)
        wanted = f"({'≤' if layout else '≥'} {self.bound:g}{unit})"
        if self.measured is None:
            return f"– {wanted}"
        value = round(self.measured, digits)
        if not self.met and (value <= self.bound if layout else value >= self.bound):
            value = self.bound + 10.0**-digits * (1 if layout else -1)
        shown = f"{value:.{digits}f}{unit}"
        return f"✓ {shown} {wanted}" if self.met else f"**✗ {shown}** {wanted}"


OPTIMIZERS = ("sgd", "sgd-momentum", "adagrad", "rmsprop", "adadelta", "adam", "adamw")
_FUSED = {name: 1.0 for name in ("sgd-momentum", "adagrad", "adam", "adamw")}
_SMALL = {"adamw": 40.0, "adam": 40.0, "adagrad": 30.0, "sgd-momentum": 15.0, "rmsprop": 60.0,
          "adadelta": 100.0}  # fmt: skip
_NETWORKS = {"resnet50": ("ResNet-50", {"rmsprop": 2.2, "adadelta": 3.5}),
             "gpt2": ("GPT-2", {"rmsprop": 2.8, "adadelta": 5.0})}  # fmt: skip


def _full_precision(dtype: str) -> list[Target]:
    found = [
        Target("1000 tensors of 64", "1000x64", dtype, "ratio", _SMALL),
        Target("one tensor of 1", "1", dtype, "ratio", {"adamw": 2.0}, _FUSED),
        Target("10,000 tensors of 16", "10000x16", dtype, "ratio", {"adamw": 40.0}, _FUSED),
    ]
    for workload, (title, slow) in _NETWORKS.items():
        found += [
            Target(title, workload, dtype, "ratio", {**_FUSED, **slow}, _FUSED),
            Target(
                f"{title}, % of floor",
                workload,
                dtype,
                "floor",
                dict.fromkeys(_FUSED, 95.0),
                _FUSED,
            ),
        ]
    return found


def _low_precision(dtype: str) -> list[Target]:
    ratios = {"sgd": 1.0, **_FUSED, "rmsprop": 5.0, "adadelta": 5.0}
    return [
        Target("one tensor of 16 M", "16m", dtype, "ratio", ratios),
        Target("one tensor of 16 M, % of floor", "16m", dtype, "floor",
               dict.fromkeys(ratios, 90.0)),
    ]  # fmt: skip


TARGETS = (
    *_full_precision("float32"),
    *_full_precision("float64"),
    *_low_precision("bfloat16"),
    *_low_precision("float16"),
    Target("ResNet-50, channels_last / contiguous", "resnet50-nhwc", "float32", "layout",
           dict.fromkeys(_SMALL, 1.05)),
    Target("training ResNet-20, whole step, torch's default / ours", "training", "float32",
           "ratio", {"sgd-momentum": 1.1, "adamw": 1.1}),
)  # fmt: skip


_CUDA = ("sgd-momentum", "adagrad", "rmsprop", "adadelta", "adamw")
_CUDA_FUSED = ("sgd-momentum", "adagrad", "adam", "adamw")
_ALL_SIX = dict.fromkeys(_SMALL, 0.0)
# What isn't named otherwise is device time. "host" and "done" have ratios of their own.
CUDA_TARGETS = (
    Target("GPT-2, % of a copy's bandwidth", "gpt2", "float32", "floor",
           dict.fromkeys(_CUDA, 92.0)),
    Target("ResNet-50, % of a copy's bandwidth", "resnet50", "float32", "floor",
           dict.fromkeys(_CUDA, 80.0)),
    Target("GPT-2, device time", "gpt2", "float32", "ratio",
           {"sgd-momentum": 1.0, "adagrad": 1.0, "adamw": 1.0, "rmsprop": 2.3, "adadelta": 3.5}),
    Target("ResNet-50, the host's time", "resnet50", "float32", "host",
           dict.fromkeys(_CUDA_FUSED, 8.0)),
    Target("1000 tensors of 64, until the device is done", "1000x64", "float32", "done",
           dict.fromkeys(_CUDA_FUSED, 10.0)),
    Target("GradScaler, syncs per step", "gpt2", "float32", "syncs", _ALL_SIX),
    Target("GradScaler, syncs per step", "16m", "float16", "syncs", _ALL_SIX),
)  # fmt: skip


def ours(rows: Sequence[Row], device: str = "cpu") -> dict[tuple[str, str, str], Row]:
    """fusedopt's rows on a device with the most threads, by workload, dtype and optimizer.

    On CUDA only those that our kernels stepped.
    """
    found: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        if row["implementation"] != "fusedopt" or row["device"] != device or "seconds" not in row:
            continue
        if device != "cpu" and row["status"]:
            continue
        place = ("training", "float32") if "model" in row else (row["workload"], row["dtype"])
        key = (*place, row["optimizer"])
        if key not in found or row["threads"] > found[key]["threads"]:
            found[key] = row
    return found


def verdicts(rows: Sequence[Row], device: str = "cpu") -> list[Verdict]:
    """Compares the rows of result files of `step` and `train` with every target of a device."""
    by_key = ours(rows, device)
    return [
        Verdict(target, optimizer, bound, _measured(target, by_key.get(
            (target.workload, target.dtype, optimizer)
        )))
        for target in (TARGETS if device == "cpu" else CUDA_TARGETS)
        for optimizer, bound in target.bounds.items()
    ]  # fmt: skip


_SPREADS = {"ratio": "ratio", "layout": "over_contiguous", "host": "host_ratio",
            "done": "done_ratio"}  # fmt: skip


def _measured(target: Target, row: Row | None) -> float | None:
    if row is None:
        return None
    if target.measure == "floor":
        return row["floor_percent"]
    if target.measure == "syncs":
        return row.get("scaler_syncs")
    spread = row.get(_SPREADS[target.measure])
    return None if spread is None else spread["median"]


def table(rows: Sequence[Row], device: str = "cpu") -> str:
    """All targets of a device in one table, optimizers across, with a line that counts."""
    found = verdicts(rows, device)
    lines: dict[int, tuple[Target, dict[str, str]]] = {}
    for verdict in found:
        line = lines.setdefault(id(verdict.target), (verdict.target, {}))
        line[1][verdict.optimizer] = verdict.text
    across = [name for name in OPTIMIZERS if any(name in cells for _, cells in lines.values())]
    body = [
        [target.what, target.dtype, *(cells.get(name, "") for name in across)]
        for target, cells in lines.values()
    ]
    head = [HEAD if device == "cpu" else CUDA_HEAD, "dtype", *across]
    return f"{_count(found, rows, device)}\n\n{tables.markdown([head, *body])}"


def _count(found: Sequence[Verdict], rows: Sequence[Row], device: str) -> str:
    met = sum(verdict.met for verdict in found)
    missing = sum(verdict.measured is None for verdict in found)
    repeated = [row.get("runs", 1) for row in ours(rows, device).values()]
    fewest, most = min(repeated, default=0), max(repeated, default=0)
    between = f"{fewest} to {most} runs" if fewest != most else f"{most} run{'s' * (most != 1)}"
    asked = f" (asked for: at least {RUNS} runs)" if device == "cpu" else ""
    counts = f"{met} met, {len(found) - met - missing} missed, {missing} not measured (–)"
    if missing == len(found):
        return f"{counts}."
    return f"{counts}, in medians of {between}{asked}; {STATE_CHECKS}."
