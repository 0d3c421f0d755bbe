"""Timing several implementations side by side, in random order, on the CPU and on CUDA."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import cuda

SAMPLE_SECONDS = 2e-3  # a shorter step is repeated within one sample
LONG_STEP_SECONDS = 0.1  # a longer one doesn't notice what the caches held before
MIN_ROUNDS = 7
MAX_ROUNDS = 300
MOST_STEPS = 20  # of one sample on CUDA, where each is measured by itself
CALIBRATION_CYCLES = 10_000_000
LONGEST_SLEEP = 0.25  # seconds; a host that needs longer to launch has filled the device's queue
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


class Times(NamedTuple):
    """What one sample says of a step.

    Attributes:
        seconds: Until the result is there: the wall clock on the CPU, device events on CUDA.
        host: How long the host is busy; on the CPU the same.
        done: From an idle device until it has finished, on the host's clock; on the CPU the same.
        late: The share of steps whose device time may hold waiting for the host.
    """

    seconds: float
    host: float
    done: float
    late: float = 0.0


@dataclass(frozen=True)
class Samples:
    """What was measured of one implementation, in seconds per step, one entry per round.

    Attributes:
        seconds: `Times.seconds`.
        host: `Times.host`.
        first: The host's time of the step before those, which starts with the caches full of the
            other implementations' memory. Empty for long steps, which are not preceded by one.
        done: `Times.done`.
        late: `Times.late`.
    """

    seconds: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)

    def add(self, times: Times) -> None:
        """Appends one sample."""
        self.seconds.append(times.seconds)
        self.host.append(times.host)
        self.done.append(times.done)
        self.late.append(times.late)


class CpuClock:
    """Wall-clock time."""

    def measure(self, step: Step, repeats: int) -> Times:
        """Returns seconds per step."""
        start = time.perf_counter_ns()
        for _ in range(repeats):
            step()
        seconds = (time.perf_counter_ns() - start) * 1e-9 / repeats
        return Times(seconds, seconds, seconds)


def _flusher() -> Step:
    """Returns what fills the device's L2 cache with other memory.

    It reads. What it wrote would have to go to memory during the step that is measured next.
    """
    size = cuda.get_device_properties("cuda").L2_cache_size
    other = torch.ones(max(size, 1 << 20), device="cuda")  # four bytes each: four times the cache
    return other.amax


class CudaClock:
    """Events on the device, with its L2 cache flushed before every step; the host's time apart.

    The device has to be busy until all of a step is launched, or its time is the host's. So it
    sleeps meanwhile, for longer than the host was measured to need, and whether it slept long
    enough is asked after the last launch. A step of more launches than the device's queue holds
    (1024 or so) can't be measured that way: `Times.late` tells.
    """

    def __init__(self) -> None:
        self._flush = _flusher()
        self._cycles_per_second = self._calibrate()
        self._sleeps: dict[Step, float] = {}  # how many seconds were needed at last

    def measure(self, step: Step, repeats: int) -> Times:
        """Returns medians over steps that are measured one by one."""
        device, host, done, late = [], [], [], []
        for _ in range(min(repeats, MOST_STEPS)):
            busy, whole = self._time_host(step)
            host.append(busy)
            done.append(whole)
            seconds, asleep = self._time_device(step, busy)
            device.append(seconds)
            late.append(not asleep)
        median = statistics.median
        return Times(median(device), median(host), median(done), statistics.fmean(late))

    def sleeps_through(self, step: Step, seconds: float) -> bool:
        """Whether a device that sleeps so long is still asleep when `step` has returned.

        It isn't if anything in `step` waits for the device, whoever does it and by whatever call.
        """
        self._sleep(seconds)
        awake = cuda.Event()
        awake.record()
        step()
        asleep = not awake.query()
        cuda.synchronize()
        return asleep

    def _calibrate(self) -> float:
        """Cycles per second; the first sleep is for a device that slows down when idle."""
        for _ in range(2):
            start, end = (cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            cuda._sleep(CALIBRATION_CYCLES)
            end.record()
            cuda.synchronize()
        return CALIBRATION_CYCLES / (start.elapsed_time(end) * 1e-3)

    def _sleep(self, seconds: float) -> None:
        cuda._sleep(max(1, int(seconds * self._cycles_per_second)))

    def _time_host(self, step: Step) -> tuple[float, float]:
        """On an idle device: until the host is free again, and until the device has finished."""
        self._flush()
        cuda.synchronize()
        start = time.perf_counter_ns()
        step()
        launched = time.perf_counter_ns()
        cuda.synchronize()
        return (launched - start) * 1e-9, (time.perf_counter_ns() - start) * 1e-9

    def _time_device(self, step: Step, host: float) -> tuple[float, bool]:
        """Between events around a step; and whether the device slept until all was launched."""
        sleep = max(self._sleeps.get(step, 0.0), 2 * host + 1e-4)
        while True:
            seconds, asleep = self._between_events(step, sleep)
            hopeless = sleep > LONGEST_SLEEP
            if asleep or hopeless:
                break
            sleep *= 4
        self._sleeps[step] = 2 * LONGEST_SLEEP if hopeless else sleep
        return seconds, asleep

    def _between_events(self, step: Step, sleep: float) -> tuple[float, bool]:
        start, end = (cuda.Event(enable_timing=True) for _ in range(2))
        cuda.synchronize()
        self._flush()
        if sleep <= LONGEST_SLEEP:  # where no sleep is long enough, none is better
            self._sleep(sleep)
        start.record()
        step()
        end.record()
        asleep = not start.query()
        cuda.synchronize()
        return start.elapsed_time(end) * 1e-3, asleep


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
        quick = min(clock.measure(step, 1).seconds for _ in range(3))
        repeats[name] = max(1, round(SAMPLE_SECONDS / max(quick, 1e-9)))
        if quick > LONG_STEP_SECONDS:
            long.add(name)
    order = list(steps)
    shuffle = random.Random(seed).shuffle
    samples = {name: Samples() for name in steps}
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
                    samples[name].first.append(clock.measure(steps[name], 1).host)
                samples[name].add(clock.measure(steps[name], repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return samples
