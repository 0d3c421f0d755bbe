"""Timing several implementations side by side, in random order, on the CPU and on CUDA."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

SAMPLE_SECONDS = 2e-3  # a shorter step is repeated within one sample
LONG_STEP_SECONDS = 0.1  # a longer one doesn't notice what the caches held before
MIN_ROUNDS = 7
MAX_ROUNDS = 300
Step = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """A median with the 10th and the 90th percentile."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarises samples."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        tenths = statistics.quantiles(values, n=10, method="inclusive")
        return cls(statistics.median(values), tenths[0], tenths[-1])

    @classmethod
    def of_ratios(cls, over: Sequence[float], under: Sequence[float]) -> Spread:
        """Summarises the ratios of samples that were taken in the same rounds."""
        return cls.of([a / b for a, b in zip(over, under, strict=True)])


@dataclass(frozen=True)
class Samples:
    """What was measured of one implementation, in seconds per step, one entry per round.

    Attributes:
        seconds: Until the result is there: the wall clock on the CPU, device events on CUDA.
        host: How long the host is busy; on the CPU the same.
        first: Of the step before those, which starts with the caches full of the other
            implementations' memory. Empty for long steps, which are not preceded by one.
    """

    seconds: list[float]
    host: list[float]
    first: list[float]


class CpuClock:
    """Wall-clock time."""

    def measure(self, step: Step, repeats: int) -> tuple[float, float]:
        """Returns seconds per step, and the host's."""
        start = time.perf_counter_ns()
        for _ in range(repeats):
            step()
        seconds = (time.perf_counter_ns() - start) * 1e-9 / repeats
        return seconds, seconds


class CudaClock:
    """Events on the device, with its L2 cache flushed before every step; the host's time apart."""

    def __init__(self) -> None:
        size = torch.cuda.get_device_properties("cuda").L2_cache_size
        self._flush = torch.empty(max(2 * size, 1 << 20), dtype=torch.int8, device="cuda")

    def measure(self, step: Step, repeats: int) -> tuple[float, float]:
        """Returns seconds per step between two events, and the host's until it is free again."""
        device, host = [], []
        for _ in range(min(repeats, 20)):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            self._flush.zero_()
            # The device has to be busy while the host launches, or its time is the host's.
            torch.cuda._sleep(1_000_000)
            start.record()
            before = time.perf_counter_ns()
            step()
            host.append((time.perf_counter_ns() - before) * 1e-9)
            end.record()
            torch.cuda.synchronize()
            device.append(start.elapsed_time(end) * 1e-3)
        return statistics.median(device), statistics.median(host)


def clock_for(device: str) -> CpuClock | CudaClock:
    """The clock of a device."""
    return CudaClock() if device == "cuda" else CpuClock()


def interleave(
    steps: Mapping[str, Step], clock: CpuClock | CudaClock, seconds: float, seed: int = 0
) -> dict[str, Samples]:
    """Measures all steps in rounds, each round every one has a turn, in random order.

    So a machine that slows down slows down all of them, and ratios can be taken within a round.
    A turn is one step apart, as warm-up, and one sample of as many steps as take `SAMPLE_SECONDS`.

    Args:
        steps: What to run, by name.
        clock: How to measure.
        seconds: How long to measure in all; at least `MIN_ROUNDS` rounds are made.
        seed: Of the order.
    """
    repeats, long = {}, set()
    for name, step in steps.items():
        clock.measure(step, 1)  # warm-up: caches, thread pools, first-time work
        quick = min(clock.measure(step, 1)[0] for _ in range(3))
        repeats[name] = max(1, round(SAMPLE_SECONDS / max(quick, 1e-9)))
        if quick > LONG_STEP_SECONDS:
            long.add(name)
    order = list(steps)
    shuffle = random.Random(seed).shuffle
    samples = {name: Samples([], [], []) for name in steps}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        for done in range(MAX_ROUNDS):
            if done >= MIN_ROUNDS and time.perf_counter() > end:
                break
            shuffle(order)
            for name in order:
                if name not in long:
                    samples[name].first.append(clock.measure(steps[name], 1)[0])
                total, host = clock.measure(steps[name], repeats[name])
                samples[name].seconds.append(total)
                samples[name].host.append(host)
    finally:
        if collecting:
            gc.enable()
    return samples
