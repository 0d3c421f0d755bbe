"""Timing several things by turns, so that a machine that slows down slows down all of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping

import torch


def clock(devices: Iterable[torch.device] = ()) -> float:
    """Returns the time in seconds, when accelerators have done what they were given."""
    for device in devices:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
    return time.perf_counter()


def median(values: Iterable[float]) -> float:
    """Returns the middle one of some numbers, or the mean of the two in the middle."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return (ordered[half] + ordered[~half]) / 2


def is_enough(samples: int, most: int, least: int, began: float, seconds: float) -> bool:
    """Whether there are `most` samples, or `least` of them after so many seconds."""
    return samples >= most or (samples >= least and time.perf_counter() - began > seconds)


class Turns:
    """Things that are timed by turns, in random order.

    Attributes:
        seconds: By name, how long each took.
        before: By name, how long what comes before it took, which isn't in `seconds`.
    """

    def __init__(
        self,
        parts: Mapping[str, tuple[Callable[[], object], Callable[[], object]]],
        devices: Iterable[torch.device] = (),
        warm_up: int = 0,
        row: int = 1,
    ) -> None:
        """Begins.

        Args:
            parts: By name, what comes before, and what is timed.
            devices: Whose work belongs to the times.
            warm_up: How many times of each don't count.
            row: How many turns each has in a row. The first of several doesn't count: it finds the
                processor as the others leave it.
        """
        self.seconds: dict[str, list[float]] = {name: [] for name in parts}
        self.before: dict[str, list[float]] = {name: [] for name in parts}
        self._parts = dict(parts)
        self._devices = tuple(devices)
        self._skipped = dict.fromkeys(parts, warm_up)
        self._row = [True] if row == 1 else [False] + [True] * (row - 1)
        self._left: list[tuple[str, bool]] = []  # the last one is the next
        self._random = random.Random(0)
        self._began = time.perf_counter()

    def turn(self) -> None:
        """Runs and times the next one."""
        if not self._left:
            names = list(self._parts)
            self._random.shuffle(names)
            self._left = [(name, counts) for name in names for counts in reversed(self._row)]
        name, counts = self._left.pop()
        prepare, run = self._parts[name]
        start = clock(self._devices)
        prepare()
        middle = clock(self._devices)
        run()
        end = clock(self._devices)
        if counts and self._skipped[name]:
            self._skipped[name] -= 1
        elif counts:
            self.before[name].append(middle - start)
            self.seconds[name].append(end - middle)

    @property
    def samples(self) -> int:
        """How many there are of each."""
        return min(len(times) for times in self.seconds.values())

    def are_enough(self, most: int, least: int, seconds: float) -> bool:
        """Whether there are `most` samples, or `least` and so many seconds have passed."""
        all_had_theirs = not self._left
        return all_had_theirs and is_enough(self.samples, most, least, self._began, seconds)
