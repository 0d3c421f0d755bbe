"""Steps while everything around them moves: `python tests/stress.py --seconds 120`.

Threads replace gradients (autograd's among them, which does so without the interpreter's lock),
hooks, finalisers and weak references' callbacks run in the midst of a step, and state comes and
goes. A step may raise what torch's may; it may mix old and new gradients. It may not crash, hang,
or read memory that isn't its own: then parameters would leave the range that they can reach.

Each actor draws from a generator of its own, seeded by `--seed`; only how threads interleave is
up to the machine. `--module torch.optim` shows that torch.optim survives the same.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import gc
import importlib
import random
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable

import torch
from cases import MAIN_CASES
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

SHAPES = ((64,), (7, 9), (), (33, 65), (0,), (5, 4, 3))
LARGE = (1 << 20,)  # stepped without the interpreter's lock
FARTHEST = 1e6  # gradients are of size 1, steps of at most 2, lr included
SURVIVED = (RuntimeError, KeyError)  # of a step whose objects another thread takes away


class Noisy:
    """Its finaliser allocates, collects, and lets go of a tensor."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.held = torch.ones(rng.choice([1, 64, 4096]))

    def __del__(self) -> None:
        del self.held
        [torch.ones(64) for _ in range(8)]
        if self.rng.random() < 0.05:
            gc.collect(0)


class Stress:
    """A few optimizers, their parameters, and what disturbs them."""

    def __init__(self, module: str, seed: int) -> None:
        self.seed = seed
        self.stop = threading.Event()
        self.raised: collections.Counter[str] = collections.Counter()
        self.failures: list[BaseException] = []
        self.steps = 0
        torch.manual_seed(seed)
        made = importlib.import_module(module)
        self.scales = module == "fusedopt"  # torch's loops refuse a scale
        self.optimizers: list[Optimizer] = []
        for i, case in enumerate(MAIN_CASES):
            params = [Parameter(torch.randn(shape)) for shape in SHAPES]
            if i == seed % len(MAIN_CASES):
                params.append(Parameter(torch.randn(LARGE)))
            for p in params:
                p.grad = torch.randn_like(p)
            # A variance is negative where one of two threads has written but half of its parts.
            options = {"centered": False} if "centered" in case.kwargs else {}
            self.optimizers.append(case.make(params, made, lr=1e-3, **options))
        rng = random.Random(seed)
        for optimizer in self.optimizers:
            optimizer.register_step_pre_hook(lambda *_: self._hook(rng))
            optimizer.register_step_post_hook(lambda *_: self._hook(rng))
        self.kept: list[object] = []
        # Setting `p.grad` while autograd accumulates it is a race within torch, and kills it.
        self.gradients = threading.Lock()

    def _params(self, rng: random.Random) -> list[Parameter]:
        return rng.choice(self.optimizers).param_groups[0]["params"]

    def _hook(self, rng: random.Random) -> None:
        """Leaves garbage that is let go of at any time, perhaps while a step runs."""
        chance = rng.random()
        noisy = Noisy(rng)
        noisy.cycle = noisy  # type: ignore[attr-defined]
        if chance < 0.02:
            gc.collect(0)
        if chance < 0.2:
            self.kept = [noisy]

    def _watched(self, grad: Tensor, rng: random.Random) -> Tensor:
        """A gradient at whose end Python code runs."""
        weakref.finalize(grad, lambda: [Noisy(rng) for _ in range(2)])
        return grad

    def graph_backward(self, rng: random.Random) -> None:
        """Sets gradients to new tensors without the interpreter's lock, as autograd does."""
        params = [p for p in self._params(rng) if p.numel() <= 4096]
        loss = sum(((p * rng.uniform(-1, 1)).sin().sum() for p in params), torch.zeros(()))
        with self.gradients:
            loss.backward(create_graph=True)
            for p in params:
                p.grad = p.grad.detach() if p.grad is not None else None

    def replace_gradients(self, rng: random.Random) -> None:
        """Also by shared and expanded ones, which a step with a scale has to separate."""
        for p in self._params(rng):
            kind = rng.random()
            grad = torch.randn(p.shape) if p.numel() <= 4096 else torch.ones(p.shape)
            if kind < 0.2 and p.dim():
                grad = torch.randn(()).expand(p.shape)
            with self.gradients:
                p.grad = self._watched(grad, rng)

    def edit_state(self, rng: random.Random) -> None:
        """Drops, copies and loads what a step reads."""
        optimizer = rng.choice(self.optimizers)
        action = rng.randrange(5)
        if action == 0:
            optimizer.state.pop(rng.choice(optimizer.param_groups[0]["params"]), None)
        elif action == 1:
            self.kept = [optimizer.state_dict()]
        elif action == 2:
            optimizer.param_groups[0]["lr"] = rng.uniform(1e-4, 1e-3)
        elif action == 3:
            for entries in list(optimizer.state.values()):
                for key, value in list(entries.items()):
                    if isinstance(value, Tensor) and value.dim():
                        entries[key] = value.clone()
        else:
            optimizer.load_state_dict(optimizer.state_dict())

    def scale(self, rng: random.Random) -> None:
        """As GradScaler tells a fused optimizer of its scale."""
        optimizer = rng.choice(self.optimizers)
        optimizer.grad_scale = torch.tensor(1.0)  # type: ignore[attr-defined]
        optimizer.found_inf = torch.tensor(float(rng.random() < 0.2))  # type: ignore[attr-defined]
        time.sleep(1e-4)
        optimizer.__dict__.pop("grad_scale", None)
        optimizer.__dict__.pop("found_inf", None)

    def step(self, rng: random.Random) -> None:
        """What all this is about."""
        optimizer = rng.choice(self.optimizers)
        optimizer.step()
        self.steps += 1
        for p in optimizer.param_groups[0]["params"]:
            with torch.no_grad():
                if not bool((p.detach().abs() < FARTHEST).all()):
                    raise AssertionError(f"{type(optimizer).__name__}: {p.detach().abs().max()}")

    def _act(self, act: Callable[[random.Random], None], number: int) -> None:
        rng = random.Random(1000 * self.seed + number)
        while not self.stop.is_set():
            try:
                act(rng)
            except SURVIVED as error:
                self.raised[f"{act.__name__}: {type(error).__name__}: {str(error)[:100]}"] += 1
            except BaseException as error:  # noqa: BLE001
                self.failures.append(error)
                self.stop.set()

    def run(self, seconds: float, steps: int) -> None:
        """Lets all act at once, until time is up or enough steps were made."""
        actors = [self.step, self.step, self.graph_backward, self.replace_gradients,
                  self.edit_state]  # fmt: skip
        if self.scales:
            actors.append(self.scale)
        threads = [
            threading.Thread(target=self._act, args=(act, i)) for i, act in enumerate(actors)
        ]
        end = time.monotonic() + seconds
        for thread in threads:
            thread.start()
        while not self.stop.wait(0.01) and time.monotonic() < end and self.steps < steps:
            pass
        self.stop.set()
        for thread in threads:
            thread.join(timeout=60)
            if thread.is_alive():
                raise AssertionError("deadlock")
        if self.failures:
            raise self.failures[0]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="at most (default: 120)")
    parser.add_argument("--steps", type=int, default=1 << 60, help="at most (default: any number)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--module", default="fusedopt", choices=["fusedopt", "torch.optim"])
    options = parser.parse_args()
    faulthandler.enable()
    warnings.filterwarnings("ignore", message="Using backward.. with create_graph=True")
    torch.set_num_threads(2)
    sys.setswitchinterval(1e-6)
    stress = Stress(options.module, options.seed)
    stress.run(options.seconds, options.steps)
    print(f"{stress.steps} steps")
    for what, times in stress.raised.most_common():
        print(f"  {times} times {what}")


if __name__ == "__main__":
    main()
