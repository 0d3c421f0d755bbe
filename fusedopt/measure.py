"""Says what share of a training loop the optimizer takes, and what another would take there."""

from __future__ import annotations

import contextlib
import threading
import weakref

import torch
from torch.optim import Optimizer

from fusedopt import _load
from fusedopt.comparison import ROW, Comparison, describe_error
from fusedopt.constructors import checked_limit
from fusedopt.copies import Refused, refuse_group
from fusedopt.measurement import Measurement, Timing
from fusedopt.turns import clock, is_enough, median
from fusedopt.twins import implementations

_WARM_UP = 3  # steps of the loop that don't count
_MOST = 20  # samples of each median
_LEAST = 3  # of slow loops and large models

_watches: dict[int, _Watch] = {}  # by the optimizer's id


class _Here(threading.local):
    """What a thread has spent in `measure`, for whatever optimizer."""

    seconds = 0.0


_here = _Here()


def measure(
    optimizer: Optimizer, *, max_grad_norm: float | None = None, seconds: float = 10.0
) -> Measurement | None:
    """Tells what share of a loop's time the optimizer phase takes, and what another would take.

    To be called once in each step of the loop, after the backward pass and before the optimizer's
    step. In a library's loop a hook does that, ``optimizer.register_step_pre_hook(hook)``, which
    must not return the answer. (With any step hook a GradScaler unscales before fusedopt's step,
    instead of in it.) Where `step` gets a closure that makes the gradients, the closure's end is
    the place; in Lightning the hook ``on_before_optimizer_step`` is called there.

    The first calls note how long the loop takes from one to the next. Each further call steps and
    times a copy of the optimizer: as its own class steps, as fusedopt's or torch.optim's of that
    name, or as torch's with ``fused=True``. So a copy finds what the loop's own step finds: new
    gradients, and the processor as forward and backward pass leave it. After some 100 calls, or
    fewer if the loop is slow, the answer is printed, once. Then calls do nothing more.

    The phase is clipping, `step` and `zero_grad`. All else between two calls is the rest of the
    loop: hooks, a GradScaler, an average of the weights. With another implementation the loop is
    taken to need its phase, and the same rest. Each call waits for the accelerators that have
    parameters, until there is the answer.

    Nothing of training is changed: parameters, gradients, state and generators keep every bit. All
    copies share their tensors; parameters and state are copied once, and gradients for each step.
    Copies of more than 64 MiB are made, compared and dropped in one call, the others kept until
    there is the answer. If there is no memory for them, that is the answer.

    Args:
        optimizer: One of fusedopt's, or of torch.optim's that fusedopt replaces; of any other the
            answer is that it has no counterpart.
        max_grad_norm: What the loop clips gradients' norm to, if a function does it; fusedopt's
            copies clip in their step, torch's by torch.nn.utils.clip_grad_norm_. By default the
            optimizer's own `max_grad_norm`.
        seconds: The loop is noted for 20 steps, or for so many seconds and 3 steps; copies are
            compared for 20 steps each, or for so many seconds and 3 steps each.

    Returns:
        None until the answer is known; then the same answer for each call with this optimizer.

    Raises:
        TypeError: If it is no optimizer, or another argument is no number.
        ValueError: If `max_grad_norm` or `seconds` is negative or NaN.
        RuntimeError: If no parameter has a gradient at the first call.

    Example:
        >>> for inputs, targets in batches:  # doctest: +SKIP
        ...     optimizer.zero_grad()
        ...     loss_function(model(inputs), targets).backward()
        ...     fusedopt.measure(optimizer)
        ...     optimizer.step()
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"measure takes an optimizer, got {type(optimizer).__name__}")
    limit, seconds = checked_limit(max_grad_norm), _checked_seconds(seconds)
    if torch.compiler.is_compiling():
        return _measure_outside_graph(optimizer, limit, seconds)
    return _watch_of(optimizer).call(optimizer, limit, seconds)


class _Watch:
    """What is known of one optimizer's loop from call to call.

    Attributes:
        answer: None until it is known.
        reference: The optimizer, as long as it lives.
    """

    def __init__(self, reference: weakref.ref[Optimizer]) -> None:
        self.answer: Measurement | None = None
        self.reference = reference
        self._lock = threading.Lock()
        self._devices: list[torch.device] = []
        self._began: float | None = None
        self._returned = 0.0  # when the last call did
        self._thread: int | None = None  # that made it
        self._spent = 0.0  # by that thread in all loops' calls
        self._intervals: list[float] = []
        self._comparison: Comparison | None = None

    def call(self, optimizer: Optimizer, limit: float | None, seconds: float) -> Measurement | None:
        """Does what comes next; nothing if another thread is at it."""
        if self.answer is not None or not self._lock.acquire(blocking=False):
            return self.answer
        began = clock()
        try:
            with torch.inference_mode(False):
                self.answer = self._go_on(optimizer, limit, seconds)
        finally:
            self._returned = clock()
            _here.seconds += self._returned - began
            self._thread, self._spent = threading.get_ident(), _here.seconds
            self._lock.release()
        if self.answer is not None:
            _say(self.answer)
        return self.answer

    def _interval(self) -> float:
        """Returns how long the loop took from the last call to this one, other calls left out."""
        passed = clock(self._devices) - self._returned
        is_same_thread = self._thread == threading.get_ident()
        return passed - (_here.seconds - self._spent if is_same_thread else 0.0)

    def _go_on(
        self, optimizer: Optimizer, limit: float | None, seconds: float
    ) -> Measurement | None:
        if self._began is None:
            return self._begin(optimizer)
        interval = self._interval()
        if self._comparison is None and len(self._intervals) < _WARM_UP + _MOST:
            self._intervals.append(interval)
        noted = len(self._intervals) - _WARM_UP
        if not is_enough(noted, _MOST, _LEAST, self._began, seconds):
            return None
        try:
            return self._compare(optimizer, limit, seconds)
        except BaseException as error:
            self._comparison = None
            if not isinstance(error, Exception):
                raise
            return _no_answer(error)  # which is no reason to end training

    def _begin(self, optimizer: Optimizer) -> Measurement | None:
        """Looks whether there is something to measure, and says so."""
        try:
            if _load.why_not:
                raise Refused(f"no kernels ({_load.why_not}), so there is nothing to compare with")
            copies = len(implementations(optimizer))
            devices = _devices_of(optimizer)
        except Refused as error:
            return _no_answer(error)
        if not _has_gradients(optimizer):
            raise RuntimeError(
                "measure: no parameter has a gradient; call it after the backward pass and before"
                " zero_grad"
            )
        self._devices, self._began = devices, clock(devices)
        calls = 1 + _WARM_UP + _MOST + copies * _MOST // (ROW - 1) * ROW
        _say(f"fusedopt.measure watches the loop, and answers within {calls} calls, one in a step")
        return None

    def _compare(
        self, optimizer: Optimizer, limit: float | None, seconds: float
    ) -> Measurement | None:
        """Makes the copies, or steps one of them; large ones all at once."""
        comparison = self._comparison
        if comparison is None:
            if not _has_gradients(optimizer):
                return None
            comparison = self._comparison = Comparison(optimizer, limit, self._devices)
        elif not comparison.can_go_on():
            return None
        else:
            comparison.turns.turn()
        while not comparison.turns.are_enough(_MOST, _LEAST, seconds):
            if not comparison.is_large:
                return None
            comparison.turns.turn()
        self._comparison = None
        return _answer(comparison, median(self._intervals[_WARM_UP:]))


def _say(what: object) -> None:
    """Prints; an output that is full or closed is no reason to end training."""
    with contextlib.suppress(OSError, ValueError):
        print(what)


def _answer(comparison: Comparison, loop: float) -> Measurement:
    own = median(comparison.turns.seconds[comparison.own])
    rest = max(0.0, loop - own)
    notes = list(comparison.notes)
    if own > loop:
        notes.append("copies take longer than the whole loop: is measure called once in each step?")
    timings = []
    for name, times in comparison.turns.seconds.items():
        phase = median(times)
        timings.append(Timing(name, phase, rest + phase, phase / (rest + phase)))
    return Measurement(
        timings,
        loop,
        comparison.phase,
        comparison.tensors,
        comparison.elements,
        comparison.turns.samples,
        notes,
    )


def _no_answer(error: Exception) -> Measurement:
    return Measurement(notes=[f"fusedopt.measure: {describe_error(error)}"])


def _watch_of(optimizer: Optimizer) -> _Watch:
    """Returns what is known of an optimizer's loop, which is forgotten when the optimizer dies."""
    key = id(optimizer)
    watch = _watches.get(key)
    if watch is None or watch.reference() is not optimizer:
        reference = weakref.ref(optimizer, lambda _: _watches.pop(key, None))
        watch = _watches[key] = _Watch(reference)
    return watch


def _devices_of(optimizer: Optimizer) -> list[torch.device]:
    """Returns the accelerators that have parameters.

    Raises:
        Refused: If some are where nothing can be waited for, or can't be gone through.
    """
    accelerator = torch.accelerator.current_accelerator()
    found = set()
    for group in optimizer.param_groups:
        refuse_group(group)
        found |= {param.device for param in group["params"]}
    for device in found:
        if device.type not in ("cpu", accelerator and accelerator.type):
            raise Refused(f"what tensors on {device} take isn't known")
    return [device for device in found if device.type != "cpu"]


def _has_gradients(optimizer: Optimizer) -> bool:
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def _checked_seconds(seconds: float) -> float:
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        raise TypeError(f"seconds must be a number, got {seconds!r}")
    if not seconds >= 0:
        raise ValueError(f"Invalid seconds: {seconds}")
    return seconds


@torch._disable_dynamo  # type: ignore[attr-defined]
def _measure_outside_graph(
    optimizer: Optimizer, limit: float | None, seconds: float
) -> Measurement | None:
    return _watch_of(optimizer).call(optimizer, limit, seconds)
