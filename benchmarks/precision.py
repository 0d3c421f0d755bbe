"""What 16 bits cost and what repairs it: `python -m benchmarks.precision`.

Three experiments: whether second moments follow the gradients, what a small GPT learns, and how
long a step takes.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import fusedopt
from benchmarks import floor, gpt, results, runs, tables
from benchmarks.results import Row
from benchmarks.workloads import WORKLOADS, Workload

CASE = ("experiment", "workload", "optimizer", "mode", "seed")
_SECOND_MOMENTS = {
    "Adam": "exp_avg_sq",
    "RMSprop": "square_avg",
    "Adadelta": "square_avg",
    "Adagrad": "sum",
}
_ELEMENTS = 4096


class Mode(NamedTuple):
    """How numbers are stored."""

    dtype: torch.dtype
    options: dict[str, Any] = {}  # noqa: RUF012  (a tuple's default)
    module: Any = fusedopt
    bytes_moved: int = 0  # by AdamW's step, per element


_FLOAT, _BFLOAT = torch.float32, torch.bfloat16
MODES = {
    "float32": Mode(_FLOAT, bytes_moved=28),
    "bfloat16, torch": Mode(_BFLOAT, module=torch.optim, bytes_moved=14),
    "bfloat16": Mode(_BFLOAT, bytes_moved=14),
    "bfloat16, stochastic rounding": Mode(_BFLOAT, {"stochastic_rounding": True}, bytes_moved=14),
    "master weights, float32 state": Mode(
        _BFLOAT, {"master_weights": True, "state_dtype": _FLOAT}, bytes_moved=26
    ),
    "master weights, bfloat16 state": Mode(
        _BFLOAT, {"master_weights": True, "stochastic_rounding": True}, bytes_moved=18
    ),
    "float32, bfloat16 state": Mode(_FLOAT, {"state_dtype": _BFLOAT}, bytes_moved=20),
    "float32, bfloat16 state, stochastic rounding": Mode(
        _FLOAT, {"state_dtype": _BFLOAT, "stochastic_rounding": True}, bytes_moved=20
    ),
}
TRACKED = ("float32", "bfloat16, torch", "bfloat16", "bfloat16, stochastic rounding")
TRAINED = tuple(name for name in MODES if name != "bfloat16" and not name.startswith("float32, "))


def _make(name: str, mode: Mode, params: Sequence[Tensor], **options: Any) -> Optimizer:
    optimizer: Optimizer = getattr(mode.module, name)(params, **mode.options, **options)
    return optimizer


def _gradients(name: str, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Steps' numbers and gradients, in bfloat16: of one size, then for most of a tenth of it."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [1e-2] * 10000 if name == "Adagrad" else [1e-2] * 1500 + [1e-3] * 5000
    for step, size in enumerate(sizes, start=1):
        yield step, (torch.randn(_ELEMENTS, generator=generator) * size).bfloat16()


def track(name: str, seed: int = 0) -> list[Row]:
    """Compares the roots of second moments with those of torch's for-loop in float64."""
    modes = {mode: MODES[mode] for mode in TRACKED}
    modes["exact"] = Mode(torch.float64, {"foreach": False}, torch.optim)
    params = {key: nn.Parameter(torch.zeros(_ELEMENTS, dtype=m.dtype)) for key, m in modes.items()}
    optimizers = {key: _make(name, m, [params[key]], lr=1e-3) for key, m in modes.items()}
    looked_at = (300, 3000, 10000) if name == "Adagrad" else (1500, 6500)
    rows: list[Row] = []
    for step, gradient in _gradients(name, seed):
        for key, optimizer in optimizers.items():
            params[key].grad = gradient.to(params[key].dtype)
            optimizer.step()
        if step not in looked_at:
            continue
        key = _SECOND_MOMENTS[name]
        exact = optimizers["exact"].state[params["exact"]][key].sqrt()
        for mode in TRACKED:
            found = optimizers[mode].state[params[mode]][key].double().sqrt() / exact
            low, middle, high = found.quantile(torch.tensor([0.05, 0.5, 0.95]).double()).tolist()
            rows.append(
                {"experiment": "tracking", "workload": "", "optimizer": name, "mode": mode,
                 "seed": seed, "steps": step, "low": low, "median": middle, "high": high}
            )  # fmt: skip
    return rows


def learn(mode: str, steps: int, seed: int) -> Row:
    """Trains the GPT with AdamW, whose betas are torch's."""
    chosen = MODES[mode]
    loss = gpt.train(
        lambda params: _make("AdamW", chosen, params, lr=1e-3, weight_decay=0.1),
        chosen.dtype,
        steps,
        seed,
    )
    return {"experiment": "training", "workload": "", "optimizer": "AdamW", "mode": mode,
            "seed": seed, "steps": steps, "loss": loss}  # fmt: skip


def clock(workload: Workload, rounds: int) -> list[Row]:
    """Times AdamW's step in all modes, by turns, and what its bytes take at least."""
    grads = {
        dtype: [param.grad for param in workload.parameters(dtype, "cpu")]
        for dtype in (_FLOAT, _BFLOAT)
    }
    optimizers = {}
    for name, mode in MODES.items():
        params = [nn.Parameter(torch.randn(shape).to(mode.dtype)) for shape in workload.shapes]
        for param, grad in zip(params, grads[mode.dtype], strict=True):
            param.grad = grad
        fused = {"fused": True} if mode.module is torch.optim else {}
        optimizers[name] = _make("AdamW", mode, params, **fused)
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    least = floor.make_floor(2, 4 * workload.elements, "cpu")  # of 28 bytes per element
    floors = []
    for turn in range(rounds + 2):
        for name, optimizer in optimizers.items():
            begin = time.perf_counter()
            optimizer.step()
            if turn >= 2:
                times[name].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        least()
        floors.append(time.perf_counter() - begin)
    floor_time = statistics.median(floors)
    medians = {name: statistics.median(each) for name, each in times.items()}
    rows = []
    for name, median in medians.items():
        moved = MODES[name].bytes_moved
        row: Row = {"experiment": "speed", "optimizer": "AdamW", "mode": name, "seed": 0,
                    "workload": workload.name, "ms": 1e3 * median,
                    "gb_per_s": 1e-9 * moved * workload.elements / median,
                    "of_float32": medians["float32"] / median,
                    "of_floor": floor_time * moved / 28 / median}  # fmt: skip
        rows.append(row)
    return rows


def table_rows(rows: Sequence[Row]) -> list[list[list[str]]]:
    """Three tables, each with a head."""
    tracking = [["optimizer", "steps", *TRACKED]]
    tracked = [row for row in rows if row["experiment"] == "tracking"]
    for (name, steps), group in itertools.groupby(
        sorted(tracked, key=lambda r: (list(_SECOND_MOMENTS).index(r["optimizer"]), r["steps"])),
        key=lambda r: (r["optimizer"], r["steps"]),
    ):
        cells = {r["mode"]: f"{r['median']:.3f} ({r['low']:.3f}–{r['high']:.3f})" for r in group}
        tracking.append([name, str(steps), *(cells.get(mode, "–") for mode in TRACKED)])
    training = [["mode", "bytes per step", "held-out loss", "less float32's"]]
    losses = {(r["mode"], r["seed"]): r["loss"] for r in rows if r["experiment"] == "training"}
    for mode in TRAINED:
        found = {seed: loss for (name, seed), loss in losses.items() if name == mode}
        more = [f - losses["float32", s] for s, f in found.items() if ("float32", s) in losses]
        if more:
            mean, extra = statistics.mean(found.values()), statistics.mean(more)
            spread = f"{extra:+.4f} ({min(more):+.4f} to {max(more):+.4f})"
            training.append([mode, str(MODES[mode].bytes_moved), f"{mean:.4f}", spread])
    speed = [["workload", "mode", "bytes per step", "ms", "GB/s", "× float32", "of the floor"]]
    speed += [
        [r["workload"], r["mode"], str(MODES[r["mode"]].bytes_moved), f"{r['ms']:.1f}",
         f"{r['gb_per_s']:.1f}", f"{r['of_float32']:.2f}", f"{r['of_floor']:.0%}"]
        for r in rows if r["experiment"] == "speed"
    ]  # fmt: skip
    return [each for each in (tracking, training, speed) if len(each) > 1]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws how second moments follow, and what the GPT has learned, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    last = {
        (r["optimizer"], r["mode"]): r for r in rows if r["experiment"] == "tracking"
    }  # the latest step of each
    names = list(_SECOND_MOMENTS)
    colors = {mode: f"C{index}" for index, mode in enumerate(MODES)}
    for index, mode in enumerate(TRACKED):
        found = [last[name, mode] for name in names if (name, mode) in last]
        at = [place + 0.2 * (index - 1.5) for place in range(len(found))]
        left.vlines(at, [r["low"] for r in found], [r["high"] for r in found], color=colors[mode])
        left.plot(at, [r["median"] for r in found], "o", color=colors[mode], label=mode)
    left.set_xticks(range(len(names)), names)
    left.set_yscale("log")
    left.axhline(1, color="gray", linewidth=0.8)
    left.set_title("Do second moments follow? After the last step", fontsize=9)
    left.set_ylabel("root of the second moment / the true one:\nmedian, 5th to 95th percentile")
    left.legend(fontsize=7)
    losses = [r for r in rows if r["experiment"] == "training"]
    for index, mode in enumerate(TRAINED):
        right.plot(
            [r["loss"] for r in losses if r["mode"] == mode],
            [index] * sum(r["mode"] == mode for r in losses),
            "o",
            color=colors[mode],
        )
    right.set_yticks(range(len(TRAINED)), TRAINED, fontsize=7)
    right.invert_yaxis()
    right.set_title("What does a small character GPT learn? One point for each seed", fontsize=9)
    right.set_xlabel("held-out loss")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser("python -m benchmarks.precision", description=__doc__)
    experiments = ("tracking", "training", "speed")
    parser.add_argument("--experiment", nargs="+", choices=experiments, default=experiments)
    parser.add_argument(
        "--steps", type=runs.number(int, 1), default=1000, help="of training (1000)"
    )
    parser.add_argument("--seeds", type=runs.number(int, 1), default=3, help="of training (3)")
    parser.add_argument(
        "--workload", nargs="+", choices=WORKLOADS, default=["16m", "gpt2"], help="of speed"
    )
    parser.add_argument("--rounds", type=runs.number(int, 1), default=31, help="of speed (31)")
    parser.add_argument("--png", type=Path, help="draw the first two experiments")
    results.add_json(parser)
    options = parser.parse_args(arguments)
    with results.recording(parser, "precision", arguments, options.json, CASE) as record:
        if "tracking" in options.experiment:
            for name in _SECOND_MOMENTS:
                record.add(track(name))
        if "training" in options.experiment:
            for seed, mode in itertools.product(range(options.seeds), TRAINED):
                record.add([learn(mode, options.steps, seed)])
        if "speed" in options.experiment:
            for name in options.workload:
                record.add(clock(WORKLOADS[name], options.rounds))
        for table in table_rows(record.result["rows"]):
            print(tables.align(table), end="\n\n")
        if options.png:
            draw(record.result["rows"], options.png)


if __name__ == "__main__":
    main()
