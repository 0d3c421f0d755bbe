"""A small run of everything that our kernels do, for compute-sanitizer: `python tests/gpu_run.py`.

Each piece of work steps a few small parameters on the device, and then the same ones on the CPU;
where our kernels stepped all of them, both must have the same bits. compute-sanitizer looks at the
memory meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from cases import CLASS_CASES, DTYPES, LAYOUTS, MAIN_CASES, Case, takes  # noqa: E402
from helpers import assert_identical, contents, kernels, random  # noqa: E402

import fusedopt  # noqa: E402

STEPS = 2
LARGE = (100_003,)  # several chunks, and an odd end
MANY = ((64,),) * 1000  # more than one launch's arguments hold


@dataclass(frozen=True)
class Work:
    """One piece of work.

    Attributes:
        name: What is printed.
        play: Steps a new optimizer on a device.
    """

    name: str
    play: Callable[[str], Optimizer]


def _label(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _plain(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: str) -> list[Parameter]:
    return [Parameter(random(s, i, dtype).to(device)) for i, s in enumerate(shapes)]


def _set_grads(params: Sequence[Parameter], t: int) -> None:
    for i, p in enumerate(params):
        p.grad = random(p.shape, 1000 * (t + 1) + i, p.dtype).to(p.device)


def layouts(case: Case, dtype: torch.dtype, device: str) -> Optimizer:
    """Every memory layout at once, but the one that torch doesn't make on a device."""
    used = [layout for layout in LAYOUTS if layout.id != "misaligned"]

    def laid_out(how: Callable[[torch.Tensor], torch.Tensor], shape: Any, seed: int) -> Any:
        given = random(shape, seed, dtype).to(device)
        with torch.device(device):  # where the layouts allocate
            return how(given)

    params = [Parameter(laid_out(each.param, each.shape, i)) for i, each in enumerate(used)]
    optimizer = case.make(params)
    for t in range(STEPS):
        for i, (p, layout) in enumerate(zip(params, used, strict=True)):
            p.grad = laid_out(layout.grad, layout.shape, 1000 * (t + 1) + i)
        optimizer.step()
    return optimizer


def shapes(
    case: Case, dtype: torch.dtype, of: Sequence[tuple[int, ...]], device: str, **options: Any
) -> Optimizer:
    """Contiguous parameters of these shapes; an option may be a function of the device."""
    given = {key: value(device) if callable(value) else value for key, value in options.items()}
    params = _plain(of, dtype, device)
    optimizer = case.make(params, **given)
    for t in range(STEPS):
        _set_grads(params, t)
        optimizer.step()
    return optimizer


def scaled(case: Case, dtype: torch.dtype, device: str, **options: Any) -> Optimizer:
    """With GradScaler; the second step overflows."""
    params = _plain([(5, 7), (33,), ()], dtype, device)
    optimizer = case.make(params, **options)
    scaler = torch.amp.GradScaler(device, init_scale=4.0)
    scaler.scale(torch.ones((), device=device))
    for t in range(3):
        _set_grads(params, t)
        if t == 1:
            params[1].grad[3] = float("inf")
        scaler.step(optimizer)
        scaler.update()
    return optimizer


def on_a_side_stream(case: Case, device: str) -> Optimizer:
    """Not on the default stream."""
    stream = torch.cuda.Stream() if device != "cpu" else None
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        optimizer = shapes(case, torch.float32, [(5, 7), LARGE], device)
    if stream is not None:
        torch.cuda.current_stream().wait_stream(stream)
    return optimizer


def captured(case: Case, device: str) -> Optimizer:
    """One step as usual, then one that is captured in a graph and replayed twice."""
    params = _plain([(5, 7), LARGE], torch.float32, device)
    lr = torch.tensor(0.01, device=device)
    optimizer = case.make(params, capturable=True, lr=lr)
    _set_grads(params, 0)
    optimizer.step()
    if device == "cpu":
        optimizer.step()
        lr.fill_(0.02)
        optimizer.step()
        return optimizer
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    graph.replay()
    lr.fill_(0.02)
    graph.replay()
    torch.cuda.synchronize()
    return optimizer


def _device_options(device: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Options that put step counts or the learning rate on the device."""
    lr = functools.partial(torch.tensor, 0.01)
    yield "fused", {"fused": True}
    yield "capturable", {"capturable": True}
    yield "capturable, lr on the device", {"capturable": True, "lr": lambda d: lr(device=d)}


def work_list(device: str) -> list[Work]:
    """All that is run on a device."""
    part = functools.partial
    found = [
        Work(f"{case.id}, {_label(dtype)}, all layouts", part(layouts, case, dtype))
        for case in MAIN_CASES
        for dtype in DTYPES
    ]
    for case in CLASS_CASES:
        found.append(Work(f"{case.id}, large", part(shapes, case, torch.float32, [LARGE])))
        found += [
            Work(f"{case.id}, {_label(dtype)}, GradScaler", part(scaled, case, dtype))
            for dtype in (torch.float32, torch.float16)
        ]
        found.append(Work(f"{case.id}, side stream", part(on_a_side_stream, case)))
        for name, options in _device_options(device):
            if all(takes(fusedopt, case.name, option) for option in options):
                play = part(shapes, case, torch.float32, [(5, 7), LARGE], **options)
                found.append(Work(f"{case.id}, {name}", play))
        if takes(fusedopt, case.name, "capturable"):
            options = {"capturable": True}
            found.append(
                Work(f"{case.id}, capturable, GradScaler",
                     part(scaled, case, torch.float32, **options))
            )  # fmt: skip
            # Without its pool torch can't allocate while it captures.
            if os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING") != "1":
                found.append(Work(f"{case.id}, graph", part(captured, case)))
    many = CLASS_CASES[-1]
    return [*found, Work(f"{many.id}, many", part(shapes, many, torch.float32, MANY))]


def values(optimizer: Optimizer) -> list[Any]:
    """What a step may change, copied to the CPU."""

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: moved(each) for key, each in value.items()}
        return value.cpu() if torch.is_tensor(value) else value

    return [moved(each) for each in contents(optimizer)]


def run(work: Work, device: str) -> tuple[bool, str]:
    """Does one piece of work.

    Returns:
        Whether our kernels did all of it, and what is wrong, or nothing.
    """
    ours = False
    try:
        optimizer = work.play(device)
        with contextlib.redirect_stdout(io.StringIO()):
            ours = "torch" not in kernels(optimizer)
        found = values(optimizer)  # waits for the device
        if ours:
            assert_identical(found, values(work.play("cpu")))
    except AssertionError as error:
        return ours, f"not the CPU's bits: {error}"
    except Exception as error:  # the other pieces are worth a look all the same
        return ours, f"{type(error).__name__}: {error}"
    return ours, ""


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser("python tests/gpu_run.py", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--list", action="store_true", help="print the work and do none of it")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    works = work_list(options.device)
    if options.list:
        print("\n".join(work.name for work in works))
        return
    by_us = wrong = 0
    for work in works:
        ours, problem = run(work, options.device)
        by_us += ours
        if problem:
            wrong += 1
            print(f"{work.name}: {problem}", flush=True)
    print(f"{len(works)} runs, {by_us} by our kernels alone, {wrong} with a wrong result")
    if wrong or not by_us:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
