"""A graph network of torch_geometric's, on a graph that the machine makes."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.programs.program import Phase, Program, Run, Side, shortened
from benchmarks.programs.supervised import accuracy

# About as large as Cora, with as many classes and training nodes.
CLASSES, NODES, FEATURES, WIDTH, STEPS = 7, 2702, 128, 16, 400
TRAINED = 20 * CLASSES
INSIDE, OUTSIDE = 8e-3, 4e-4  # how likely an edge is: some 3 within a class, and 1 to the others


@cache
def _graph() -> tuple[Tensor, Tensor, Tensor]:
    """Features, edges and labels, in an order that is random."""
    from torch_geometric.utils import stochastic_blockmodel_graph

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        likely = torch.full((CLASSES, CLASSES), OUTSIDE).fill_diagonal_(INSIDE)
        sizes = [NODES // CLASSES] * CLASSES
        edges = stochastic_blockmodel_graph(sizes, likely)
        labels = torch.arange(CLASSES).repeat_interleave(NODES // CLASSES)
        features = torch.randn(CLASSES, FEATURES)[labels] + 4 * torch.randn(NODES, FEATURES)
        order = torch.randperm(NODES)
        place = torch.empty_like(order)
        place[order] = torch.arange(NODES)
        return features[order], place[edges], labels[order]


def _network() -> nn.Module:
    """Kipf and Welling, Semi-Supervised Classification with Graph Convolutional Networks, 2017."""
    from torch_geometric.nn import GCNConv, Sequential

    return Sequential(
        "x, edges",
        [
            (nn.Dropout(0.5), "x -> x"),
            (GCNConv(FEATURES, WIDTH, cached=True), "x, edges -> x"),
            nn.ReLU(),
            nn.Dropout(0.5),
            (GCNConv(WIDTH, CLASSES, cached=True), "x, edges -> x"),
        ],
    )


def _make(side: Side, seed: int, scale: float) -> Run:
    """As torch_geometric's example trains it: weight decay of the first layer only."""
    features, edges, labels = _graph()
    torch.manual_seed(seed)
    model: Any = _network()
    first, last = (layer for layer in model.children() if list(layer.parameters()))
    groups = [
        {"params": list(first.parameters()), "weight_decay": 5e-4},
        {"params": list(last.parameters()), "weight_decay": 0.0},
    ]
    phase = Phase(side, "Adam", model, groups, lr=0.01)

    def train() -> None:
        model.train()
        for _ in range(shortened(STEPS, scale)):
            scores = model(features, edges)
            functional.cross_entropy(scores[:TRAINED], labels[:TRAINED]).backward()
            phase.end_step()

    @torch.no_grad()
    def result() -> float:
        scores = model.eval()(features, edges)
        return float(accuracy(scores[TRAINED:], labels[TRAINED:]))

    return Run(train, result)


PROGRAMS = (
    Program(
        "graph",
        "graph network of torch_geometric",
        "Adam",
        _make,
        "accuracy, %",
        needs=("torch_geometric",),
    ),
)
