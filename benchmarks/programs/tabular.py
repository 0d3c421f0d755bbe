"""A multilayer perceptron on a table of measurements."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from benchmarks.programs.program import Phase, Program, Run, Side, shortened
from benchmarks.programs.supervised import evaluate, shuffled, train

STEPS, BATCH, WIDTH, DEPTH, LIMIT = 2000, 32, 128, 3, 1.0


@cache
def _table() -> tuple[Tensor, ...]:
    """Rows of training and test, each with labels: 569 tumours, 30 measurements of each."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    rows, labels = load_breast_cancer(return_X_y=True)
    parts = train_test_split(rows, labels, test_size=0.25, random_state=0, stratify=labels)
    scaler = StandardScaler().fit(parts[0])
    inputs = [torch.tensor(scaler.transform(part), dtype=torch.float32) for part in parts[:2]]
    targets = [torch.tensor(part, dtype=torch.float32) for part in parts[2:]]
    return inputs[0], targets[0], inputs[1], targets[1]


def _loss(scores: Tensor, labels: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(scores.squeeze(-1), labels)


def _network(inputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    for width in [inputs, *[WIDTH] * (DEPTH - 1)]:
        layers += [nn.Linear(width, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 1))


def _make(side: Side, seed: int, scale: float) -> Run:
    inputs, targets, *held_out = _table()
    torch.manual_seed(seed)
    model, steps = _network(inputs.shape[1]), shortened(STEPS, scale)
    phase = Phase(side, "AdamW", model, limit=LIMIT, weight_decay=0.1)
    scheduler = OneCycleLR(phase.optimizer, max_lr=3e-3, total_steps=steps + 1)
    batches = shuffled(inputs, targets, BATCH, steps, seed)
    return Run(
        lambda: train(model, batches, _loss, phase, scheduler),
        lambda: evaluate(phase.trained, *held_out, _loss),
    )


PROGRAMS = (
    Program(
        "mlp",
        "MLP on a table of scikit-learn's, clipping and a schedule",
        "AdamW",
        _make,
        "held-out loss",
        whole=True,
        needs=("sklearn",),
    ),
)
