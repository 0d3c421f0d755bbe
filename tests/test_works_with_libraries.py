"""Libraries whose own code trains or makes the network: what torch.optim's classes give there.

All is computed in float64, by what each library has for it. Then both modules differ by the last
bits of a step, a few times 1e-16, and what these become in some dozens of steps is far below the
tolerance of `assert_close`, 1e-10.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import CLASS_CASES, Case, case, over, with_torch
from helpers import random
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from works_with import BOTH, HOW, LIMIT, Run, assert_close, continued_both_ways, load, outcome, save

import fusedopt

CLASSES = with_torch(CLASS_CASES)
ADAMW = case("AdamW-all")


class TestTorchGeometric:
    @pytest.fixture(autouse=True)
    def torch_geometric(self) -> None:
        pytest.importorskip("torch_geometric", reason=HOW)

    def graph(self) -> Any:
        """40 nodes of 3 classes."""
        from torch_geometric.data import Data

        generator = torch.Generator().manual_seed(1)
        edges = torch.randint(40, (2, 160), generator=generator)
        labels = torch.randint(3, (40,), generator=generator)
        return Data(x=random((40, 6), 2), edge_index=edges, y=labels)

    def network(self) -> Module:
        from torch_geometric.nn import GCN

        torch.manual_seed(0)
        return GCN(6, 8, num_layers=2, out_channels=3).double()

    def begin(self, module: ModuleType, case: Case) -> Run:
        """Weight decay for the first layer only, as in the library's example of a GCN."""
        model = self.network()
        first, second = model.convs
        groups = [
            {"params": first.parameters(), "weight_decay": 0.05},
            {"params": second.parameters(), "weight_decay": 0.0},
        ]
        return self.train(model, case.make(groups, module=module))

    def train(self, model: Module, optimizer: Optimizer) -> Run:
        data = self.graph()
        for _ in range(5):
            model.train()
            optimizer.zero_grad()
            scores = model(data.x, data.edge_index)
            torch.nn.functional.cross_entropy(scores, data.y).backward()
            optimizer.step()
        return model, optimizer

    @over(CLASSES, "case")
    def test_a_graph_network(self, case: Case) -> None:
        ours, theirs = (outcome(*self.begin(module, case)) for module in BOTH)
        assert_close(ours, theirs)

    def test_a_checkpoint_is_continued_with_either(self, tmp_path: Path) -> None:
        def resume(module: ModuleType, path: Path) -> Run:
            model = self.network()
            groups = [{"params": layer.parameters()} for layer in model.convs]
            optimizer = getattr(module, ADAMW.name)(groups)
            load((model, optimizer), path)
            return self.train(model, optimizer)

        continued_both_ways(
            lambda module: self.begin(module, ADAMW), save, resume, lambda run: outcome(*run),
            tmp_path,
        )  # fmt: skip

    @over([case for case in CLASSES if not case.makes_state_early], "case")
    def test_lazy_layers_of_several_kinds_of_nodes(self, case: Case) -> None:
        """The optimizer has its parameters before they have shapes, which Adagrad refuses."""
        from torch_geometric.nn import HeteroConv, SAGEConv

        inputs = {"a": random((20, 4), 0), "b": random((30, 5), 1)}
        ends = torch.arange(20)
        edges = {
            ("a", "to", "b"): torch.stack([ends, ends + 10]),
            ("b", "to", "a"): torch.stack([ends + 5, ends]),
        }

        def train(module: ModuleType) -> dict[str, Any]:
            torch.manual_seed(0)
            kinds = {kind: SAGEConv((-1, -1), 3) for kind in edges}
            model = HeteroConv(kinds, aggr="sum").double()
            optimizer = case.make(model.parameters(), module=module)
            for _ in range(4):
                optimizer.zero_grad()
                sum(out.square().mean() for out in model(inputs, edges).values()).backward()
                optimizer.step()
            return outcome(model, optimizer)

        assert_close(train(fusedopt), train(torch.optim))


class TestGPyTorch:
    @pytest.fixture(autouse=True)
    def gpytorch(self) -> None:
        self.gpytorch = pytest.importorskip("gpytorch", reason=HOW)
        self.inputs = torch.linspace(0, 1, 20, dtype=torch.float64)
        self.targets = (6 * self.inputs).sin() + 0.1 * random((20,), 0)

    def process(self) -> Module:
        gp = self.gpytorch

        class Process(gp.models.ExactGP):
            def __init__(self, *given: Any) -> None:
                super().__init__(*given)
                self.mean_module = gp.means.ConstantMean()
                self.covar_module = gp.kernels.ScaleKernel(gp.kernels.RBFKernel())

            def forward(self, x: Tensor) -> Any:
                return gp.distributions.MultivariateNormal(
                    self.mean_module(x), self.covar_module(x)
                )

        likelihood = gp.likelihoods.GaussianLikelihood()
        return Process(self.inputs, self.targets, likelihood).double()

    def train(self, model: Any, optimizer: Optimizer) -> Run:
        """The loop of the library's first example."""
        model.train()
        mll = self.gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
        for _ in range(5):
            optimizer.zero_grad()
            (-mll(model(self.inputs), self.targets)).backward()
            optimizer.step()
        return model, optimizer

    def begin(self, module: ModuleType, case: Case) -> Run:
        model = self.process()
        return self.train(model, case.make(model.parameters(), module=module, maximize=False))

    @over(CLASSES, "case")
    def test_an_exact_process(self, case: Case) -> None:
        ours, theirs = (outcome(*self.begin(module, case)) for module in BOTH)
        assert_close(ours, theirs)

    def test_a_checkpoint_is_continued_with_either(self, tmp_path: Path) -> None:
        def resume(module: ModuleType, path: Path) -> Run:
            model = self.process()
            optimizer = getattr(module, ADAMW.name)(model.parameters())
            load((model, optimizer), path)
            return self.train(model, optimizer)

        continued_both_ways(
            lambda module: self.begin(module, ADAMW), save, resume, lambda run: outcome(*run),
            tmp_path,
        )  # fmt: skip

    @over(CLASSES, "case")
    def test_beside_natural_gradients(self, case: Case) -> None:
        """The library's own optimizer steps the variational parameters, ours all others."""
        gp = self.gpytorch

        class Process(gp.models.ApproximateGP):
            def __init__(self, points: Tensor) -> None:
                inner = gp.variational.NaturalVariationalDistribution(len(points))
                super().__init__(gp.variational.VariationalStrategy(self, points, inner))
                self.mean_module = gp.means.ConstantMean()
                self.covar_module = gp.kernels.ScaleKernel(gp.kernels.RBFKernel())

            def forward(self, x: Tensor) -> Any:
                return gp.distributions.MultivariateNormal(
                    self.mean_module(x), self.covar_module(x)
                )

        def train(module: ModuleType) -> dict[str, Any]:
            torch.manual_seed(0)
            model = Process(self.inputs[::4].clone()).double()
            likelihood = gp.likelihoods.GaussianLikelihood().double()
            natural = gp.optim.NGD(model.variational_parameters(), num_data=20, lr=0.1)
            others = [*model.hyperparameters(), *likelihood.parameters()]
            optimizer = case.make(others, module=module, maximize=False)
            elbo = gp.mlls.VariationalELBO(likelihood, model, num_data=20)
            model.train()
            for part in (slice(0, 10), slice(10, 20), slice(5, 15)):
                natural.zero_grad()
                optimizer.zero_grad()
                (-elbo(model(self.inputs[part]), self.targets[part])).backward()
                natural.step()
                optimizer.step()
            return outcome(model, optimizer)

        assert_close(train(fusedopt), train(torch.optim))


class TestSkorch:
    """Its loop hands a closure to `step`, in which gradients are made and clipped."""

    @pytest.fixture(autouse=True)
    def skorch(self, tmp_path: Path) -> None:
        self.skorch = pytest.importorskip("skorch", reason=HOW)
        self.folder = tmp_path
        inputs = random((24, 6), 1)
        self.data = inputs.numpy(), inputs.sum(1, keepdim=True).numpy()

    def net(self, module: ModuleType, case: Case, callbacks: Any = (), **made: Any) -> Any:
        made = {**case.kwargs, "maximize": False, **made}
        options = {f"optimizer__{key}": value for key, value in made.items()}
        torch.manual_seed(0)
        return self.skorch.NeuralNetRegressor(
            Network, optimizer=getattr(module, case.name), max_epochs=2, batch_size=4,
            train_split=None, verbose=0, callbacks=list(callbacks), **options,
        )  # fmt: skip

    def result(self, net: Any) -> dict[str, Any]:
        return outcome(net.module_, net.optimizer_)

    def callbacks(self, clip: float | None) -> Iterator[Any]:
        from skorch.callbacks import GradientNormClipping, LRScheduler

        if clip is not None:
            yield GradientNormClipping(clip)
        yield LRScheduler("ExponentialLR", gamma=0.9, step_every="batch")

    @pytest.mark.parametrize("by_step", [False, True], ids=["by_callback", "by_step"])
    @over(CLASSES, "case")
    def test_clipping_and_a_scheduler(self, case: Case, by_step: bool) -> None:
        theirs = self.net(torch.optim, case, self.callbacks(LIMIT)).fit(*self.data)
        made = {"max_grad_norm": LIMIT} if by_step else {}
        clip = None if by_step else LIMIT
        ours = self.net(fusedopt, case, self.callbacks(clip), **made).fit(*self.data)
        assert_close(self.result(ours), self.result(theirs))
        assert_close(ours.history[:, "train_loss"], theirs.history[:, "train_loss"])
        if by_step:
            assert float(ours.optimizer_.grad_norm) > LIMIT

    def test_saved_parameters_are_continued_with_either(self) -> None:
        def files(path: Path) -> dict[str, Path]:
            return {f"f_{part}": Path(f"{path}.{part}") for part in ("params", "optimizer")}

        def resume(module: ModuleType, path: Path) -> Any:
            net = self.net(module, ADAMW).initialize()
            net.load_params(**files(path))
            return net.partial_fit(*self.data)

        continued_both_ways(
            lambda module: self.net(module, ADAMW).fit(*self.data),
            lambda net, path: net.save_params(**files(path)), resume, self.result, self.folder,
        )  # fmt: skip

    @over(CLASSES, "case")
    def test_a_pickled_net_goes_on(self, case: Case) -> None:
        def train(module: ModuleType) -> dict[str, Any]:
            net = pickle.loads(pickle.dumps(self.net(module, case).fit(*self.data)))
            return self.result(net.partial_fit(*self.data))

        assert_close(train(fusedopt), train(torch.optim))


class Network(torch.nn.Sequential):
    """At the module's top, so that it can be pickled."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
        self.double()
