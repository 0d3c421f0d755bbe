"""Language models of characters, trained on Python's standard library."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from benchmarks import gpt
from benchmarks.programs.program import Phase, Program, Run, Side, shortened
from benchmarks.programs.supervised import evaluate, train

HELD_OUT, EVALUATED = 100_000, 128  # characters; windows of them


class LSTM(nn.Module):
    """Zaremba et al., Recurrent Neural Network Regularization, 2014, made small."""

    def __init__(self) -> None:
        super().__init__()
        width = 128
        self.token, self.drop = nn.Embedding(gpt.VOCABULARY, width), nn.Dropout(0.1)
        self.cells = nn.LSTM(width, width, num_layers=2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(width, gpt.VOCABULARY)

    def forward(self, codes: Tensor) -> Tensor:
        """Scores of the next character, for each of (batch, length) codes."""
        return self.head(self.drop(self.cells(self.drop(self.token(codes)))[0]))


@dataclass(frozen=True)
class _Recipe:
    """How one of them is trained.

    Attributes:
        network: Makes it.
        steps: In all.
        batch: Windows in one step.
        length: Characters in one window.
        optimizer: The class.
        rate: The highest learning rate.
        limit: Of the gradients' norm.
    """

    network: Callable[[], nn.Module]
    steps: int
    batch: int
    length: int
    optimizer: str
    rate: float
    limit: float


def _windows(codes: Tensor, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Characters, and those that follow them."""
    windows = codes[starts[:, None] + torch.arange(length + 1)]
    return windows[:, :-1], windows[:, 1:]


def _batches(codes: Tensor, recipe: _Recipe, steps: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(codes) - recipe.length, (recipe.batch,), generator=generator)
        yield _windows(codes, starts, recipe.length)


def _loss(scores: Tensor, codes: Tensor) -> Tensor:
    return functional.cross_entropy(scores.flatten(0, 1), codes.flatten())


def _maker(recipe: _Recipe) -> Callable[[Side, int, float], Run]:
    def make(side: Side, seed: int, scale: float) -> Run:
        training, held_out = gpt.text()[:-HELD_OUT], gpt.text()[-HELD_OUT:]
        torch.manual_seed(seed)
        model, steps = recipe.network(), shortened(recipe.steps, scale)
        phase = Phase(side, recipe.optimizer, model, limit=recipe.limit, lr=recipe.rate)
        warm = max(1, steps // 20)
        scheduler = LambdaLR(
            phase.optimizer,
            lambda step: min(1.0, (step + 1) / warm) * (1 + math.cos(math.pi * step / steps)) / 2,
        )
        batches = _batches(training, recipe, steps, seed)
        starts = torch.arange(EVALUATED) * ((HELD_OUT - recipe.length - 1) // EVALUATED)
        windows = _windows(held_out, starts, recipe.length)
        return Run(
            lambda: train(model, batches, _loss, phase, scheduler),
            lambda: evaluate(phase.trained, *windows, _loss),
        )

    return make


PROGRAMS = (
    Program(
        "lstm",
        "LSTM language model, clipping",
        "Adam",
        _maker(_Recipe(LSTM, 250, 16, 32, "Adam", 3e-3, 0.25)),
        "held-out loss",
        whole=True,
    ),
    Program(
        "gpt",
        "character GPT, clipping",
        "AdamW",
        _maker(_Recipe(gpt.GPT, 150, gpt.BATCH, gpt.CONTEXT, "AdamW", 1e-3, 1.0)),
        "held-out loss",
        whole=True,
    ),
)
