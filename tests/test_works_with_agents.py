"""stable-baselines3's agents with our classes, which learn what they learn with torch.optim's."""

from __future__ import annotations

import operator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import kernels
from torch import Tensor
from works_with import HOW, assert_close, continued_both_ways

import fusedopt


class TestStableBaselines3:
    """Agents learn from what they did, so a difference would grow: these play the same games."""

    ALGORITHMS = {
        "PPO": ("CartPole-v1", "Adam", {"n_steps": 32, "batch_size": 16, "n_epochs": 2}),
        "A2C": ("CartPole-v1", "RMSprop", {"n_steps": 8}),
        "DQN": ("CartPole-v1", "Adam", {"learning_starts": 32, "train_freq": 2}),
        "SAC": ("Pendulum-v1", "Adam", {"learning_starts": 40}),
    }
    STEPS = 64

    @pytest.fixture(autouse=True)
    def stable_baselines3(self, tmp_path: Path) -> None:
        self.sb3 = pytest.importorskip("stable_baselines3", reason=HOW)
        self.folder = tmp_path

    def policy(self, name: str) -> type:
        """The library's own, in float64; observations come in float32, as they always do."""
        policy = getattr(self.sb3, name.lower()).MlpPolicy

        class Double(policy):
            def _build(self, schedule: Any) -> None:
                super()._build(schedule)
                self.double()

        return Double

    def how(self, module: ModuleType | None, name: str) -> dict[str, Any]:
        """What a user writes to get the class; without one, the library's defaults."""
        from stable_baselines3.common.torch_layers import FlattenExtractor

        class Double(FlattenExtractor):
            def forward(self, observations: Tensor) -> Tensor:
                return super().forward(observations).double()

        how: dict[str, Any] = {"net_arch": [16], "features_extractor_class": Double}
        if module is not None:
            how["optimizer_class"] = getattr(module, self.ALGORITHMS[name][1])
            # SB3 gives them to torch.optim's classes only.
            if name == "PPO":
                how["optimizer_kwargs"] = {"eps": 1e-5}
            elif name == "A2C":
                how["optimizer_kwargs"] = {"alpha": 0.99, "eps": 1e-5, "weight_decay": 0}
        return how

    def learn(self, module: ModuleType | None, name: str) -> Any:
        world, _, options = self.ALGORITHMS[name]
        agent = getattr(self.sb3, name)(
            self.policy(name), world, seed=0, device="cpu", policy_kwargs=self.how(module, name),
            **options,
        )  # fmt: skip
        return self.checked(agent.learn(self.STEPS), module or torch.optim)

    def checked(self, agent: Any, module: ModuleType) -> Any:
        for key in agent.get_parameters():
            if key.endswith(".optimizer"):
                optimizer = operator.attrgetter(key)(agent)
                assert type(optimizer).__module__.startswith(module.__name__)
                assert ("torch" in kernels(optimizer)) == (module is torch.optim)
        return agent

    def resume(self, module: ModuleType, name: str, path: Path) -> Any:
        import gymnasium

        how = {"policy_kwargs": self.how(module, name)}
        world = gymnasium.make(self.ALGORITHMS[name][0])
        agent = getattr(self.sb3, name).load(path, env=world, custom_objects=how)
        agent.learn(self.STEPS, reset_num_timesteps=False)
        return self.checked(agent, module)

    @pytest.mark.parametrize("name", ALGORITHMS)
    def test_the_same_agent_as_by_default(self, name: str) -> None:
        ours, theirs = (self.learn(m, name).get_parameters() for m in (fusedopt, None))
        assert_close(ours, theirs)

    @pytest.mark.parametrize("name", ALGORITHMS)
    def test_an_agent_that_was_saved_learns_on_with_either(self, name: str) -> None:
        continued_both_ways(
            lambda module: self.learn(module, name),
            lambda agent, path: agent.save(path),
            lambda module, path: self.resume(module, name, path),
            lambda agent: agent.get_parameters(),
            self.folder,
        )
