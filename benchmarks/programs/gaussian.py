"""A Gaussian process of GPyTorch's: Adam on a few parameters of one element or a few."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.programs.program import Phase, Program, Run, Side, shortened

POINTS, INPUTS, STEPS = 150, 3, 500


def _points(seed: int, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(count, INPUTS, generator=generator)
    noise = 0.1 * torch.randn(count, generator=generator)
    return inputs, torch.sin(6 * inputs[:, 0]) + inputs[:, 1] ** 2 + noise


def _process(inputs: Tensor, targets: Tensor) -> Any:
    """As in GPyTorch's tutorial of regression, with a length scale for each input."""
    import gpytorch

    class Process(gpytorch.models.ExactGP):
        def __init__(self) -> None:
            super().__init__(inputs, targets, gpytorch.likelihoods.GaussianLikelihood())
            self.mean = gpytorch.means.ConstantMean()
            kernel = gpytorch.kernels.RBFKernel(ard_num_dims=INPUTS)
            self.kernel = gpytorch.kernels.ScaleKernel(kernel)

        def forward(self, x: Tensor) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    return Process()


def _make(side: Side, seed: int, scale: float) -> Run:
    import gpytorch

    inputs, targets = _points(seed, POINTS)
    torch.manual_seed(seed)
    model = _process(inputs, targets)
    likelihood = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    phase = Phase(side, "Adam", model, lr=0.1)

    def train() -> None:
        model.train()
        for _ in range(shortened(STEPS, scale)):
            loss = -likelihood(model(inputs), targets)
            loss.backward()
            phase.end_step()

    @torch.no_grad()
    def result() -> float:
        others, values = _points(1000 + seed, POINTS)
        found = model.eval()(others).mean
        return float((found - values).square().mean().sqrt())

    return Run(train, result)


PROGRAMS = (
    Program(
        "gp",
        "Gaussian process of GPyTorch",
        "Adam",
        _make,
        "error of prediction",
        needs=("gpytorch",),
    ),
)
