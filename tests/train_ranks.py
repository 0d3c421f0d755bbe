"""The training script on each of several ranks, for test_train_ranks.py."""

from __future__ import annotations

import contextlib
import io
from typing import Any


def train(*options: object) -> tuple[int, str]:
    """Runs the script, and returns its exit status and what it printed."""
    from fusedopt.train import folder, main

    folder.draw_run = lambda rows, file, *_: file.write(b"PNG")
    output, status = io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            main(list(map(str, options)))
        except SystemExit as error:
            status = int(error.code or 0)
    return status, output.getvalue()


def groups(*options: object) -> list[tuple[float, int]]:
    """Returns learning rate and number of elements of the optimizer's groups."""
    from fusedopt.train import cli, run, start

    chosen, _ = cli.parse(cli.make_parser(), list(map(str, options)))
    state = start.start(chosen, run.load_splits(chosen), None)
    groups = state.optimizer.param_groups
    return [(group["lr"], sum(p.numel() for p in group["params"])) for group in groups]


def exchange_parameters() -> tuple[list[str], list[float]]:
    """Returns what a shared optimizer does around its communication, and its parameters after."""
    import torch

    from fusedopt.train.strategy import shared_optimizer

    events: list[str] = []

    @contextlib.contextmanager
    def communicating() -> Any:
        events.append("begin")
        yield
        events.append("end")

    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = shared_optimizer(torch.optim.SGD, parameters, lr=0.5)
    optimizer.communicating = communicating
    for parameter in parameters:
        parameter.grad = torch.ones(2)
    optimizer.step()
    return events, [value for parameter in parameters for value in parameter.tolist()]


def train_poisoned(rank: int, batch: int, *options: object) -> tuple[int, str]:
    """Runs the script, but on one rank the loss of one batch is NaN."""
    import torch.nn.functional as F

    from fusedopt.train import world

    cross_entropy, batches = F.cross_entropy, 0

    def poisoned(logits: Any, *arguments: Any, **keywords: Any) -> Any:
        nonlocal batches
        loss = cross_entropy(logits, *arguments, **keywords)
        batches += logits.requires_grad
        bad = logits.requires_grad and batches == batch and world.rank() == rank
        return loss * float("nan") if bad else loss

    F.cross_entropy = poisoned
    try:
        return train(*options)
    finally:
        F.cross_entropy = cross_entropy


class _Stop(Exception):
    pass


def train_until(batch: int, *options: object) -> None:
    """Runs the script until a batch, and leaves it as an error would."""
    from fusedopt.train import loop

    show, left = loop._show, batch

    def show_or_stop(*arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise _Stop
        show(*arguments)

    loop._show = show_or_stop
    try:
        train(*options)
    except _Stop:
        return
    finally:
        loop._show = show
    raise AssertionError("the run has ended before")
