"""How often a step with torch's GradScaler makes the host wait for the device."""

from __future__ import annotations

import functools
import warnings

import torch
from torch import cuda

from benchmarks.implementations import Absent, Implementation
from benchmarks.optimizers import Choice
from benchmarks.timing import CudaClock, Step
from benchmarks.workloads import Workload

STEPS = 5
SLEEP = 0.2  # seconds, far more than the host needs for these few tensors
MODEL = Workload("scaled", "8 tensors of 4096", ((64, 64),) * 8)
_MESSAGE = "called a synchronizing CUDA operation"  # torch's


def scaled_step(implementation: Implementation, choice: Choice, dtype: torch.dtype) -> Step:
    """Returns `scaler.step(optimizer); scaler.update()`, which has run once.

    Raises:
        Absent: The implementation can't do this; GradScaler itself refuses float16 gradients
            unless the optimizer unscales them.
    """
    params = MODEL.parameters(dtype, "cuda")
    optimizer = implementation.make(choice, params)
    scaler = torch.amp.GradScaler("cuda", init_scale=1.0)
    scaler.scale(torch.ones((), device="cuda"))  # makes the scale, as a loss would

    def step() -> None:
        scaler.step(optimizer)
        scaler.update()

    try:
        step()
    except (RuntimeError, ValueError) as error:
        raise Absent(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    return step


def counted(step: Step, clock: CudaClock) -> float:
    """Returns how often a step waits, as torch's sync debug mode counts.

    That mode knows torch's own calls only. So where it counts none, a sleeping device shows whether
    anything else waits for it, and that counts as one.
    """
    before = cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(STEPS):
                step()
        finally:
            cuda.set_sync_debug_mode(before)
    found = sum(_MESSAGE in str(warning.message) for warning in caught)
    return found / STEPS if found or clock.sleeps_through(step, SLEEP) else 1.0


@functools.cache
def per_step(implementation: Implementation, choice: Choice, dtype: torch.dtype) -> float | None:
    """Counts the waits of one implementation, or returns None where it can't run."""
    try:
        step = scaled_step(implementation, choice, dtype)
    except Absent:
        return None
    return counted(step, CudaClock())
