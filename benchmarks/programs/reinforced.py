"""stable-baselines3's algorithms, whose code stays as it is.

The class comes by `policy_kwargs`. What more there is to gain takes a line for each function that
the library calls by its name: clipping in torch.nn.utils, the targets' average in its own modules.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch

import fusedopt
from benchmarks.programs.program import WHOLE, Program, Run, Side, Stopwatch, shortened


@dataclass(frozen=True)
class _Recipe:
    """An algorithm with its environment.

    Attributes:
        algorithm: Its class.
        environment: Its name in gymnasium.
        timesteps: Steps in the environment.
        least: As few as have a training step and an episode's end.
        optimizer: The class.
        optimizer_options: What the library gives torch's class by default.
        policy: Other `policy_kwargs`.
        options: Of the algorithm; the rest is the library's default.
        averages: The module that calls `polyak_update`, if one does.
    """

    algorithm: str
    environment: str
    timesteps: int
    least: int
    optimizer: str = "Adam"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    averages: str | None = None


def polyak_update(params: Any, targets: Any, tau: float) -> None:
    """stable-baselines3's function of that name, in one call."""
    if targets := list(targets):
        fusedopt.swa_utils.get_ema_multi_avg_fn(1 - tau)(targets, list(params), 0)


def _replaced(recipe: _Recipe, side: Side) -> dict[str, Callable[..., Any]]:
    """The functions that another one takes the place of, by name: ours, or a timed one."""
    if side.name != WHOLE and side.stopwatch is None:
        return {}
    found: dict[str, Callable[..., Any]] = {"torch.nn.utils.clip_grad_norm_": side.timed(side.clip)}
    if recipe.averages is not None:
        from stable_baselines3.common.utils import polyak_update as theirs

        update = torch.no_grad()(polyak_update) if side.name == WHOLE else theirs
        found[f"{recipe.averages}.polyak_update"] = side.timed(update)
    return found


def _optimizers(model: Any) -> list[Any]:
    policy = model.policy
    owners = (policy, getattr(policy, "actor", None), getattr(policy, "critic", None))
    found = [getattr(owner, "optimizer", None) for owner in owners]
    found.append(getattr(model, "ent_coef_optimizer", None))
    return [optimizer for optimizer in found if optimizer is not None]


def _maker(recipe: _Recipe) -> Callable[[Side, int, float], Run]:
    def make(side: Side, seed: int, scale: float) -> Run:
        import stable_baselines3

        options = {**recipe.optimizer_options, **side.options(recipe.optimizer)}
        policy = {
            **recipe.policy,
            "optimizer_class": getattr(side.module, recipe.optimizer),
            "optimizer_kwargs": options,
        }
        model = getattr(stable_baselines3, recipe.algorithm)(
            "MlpPolicy", recipe.environment, policy_kwargs=policy, seed=seed, device="cpu",
            **recipe.options,
        )  # fmt: skip
        if side.name == WHOLE and getattr(model, "ent_coef_optimizer", None) is not None:
            model.ent_coef_optimizer = fusedopt.Adam([model.log_ent_coef], lr=model.lr_schedule(1))
        for optimizer in _optimizers(model):
            side.watch(optimizer)
        training = Stopwatch()
        model.train = training.around(model.train)

        def learn() -> None:
            with contextlib.ExitStack() as replaced:
                for name, function in _replaced(recipe, side).items():
                    replaced.enter_context(mock.patch(name, function))
                model.learn(shortened(recipe.timesteps, scale, recipe.least))

        def result() -> float:
            """The mean of the last episodes, a hundred at most, which the library prints, too."""
            return statistics.fmean(episode["r"] for episode in model.ep_info_buffer)

        return Run(learn, result, {"train()": training})

    return make


def _program(name: str, title: str, recipe: _Recipe) -> Program:
    """Its beginning, when nothing is learned yet, doesn't tell the phase's share."""
    return Program(
        name, title, recipe.optimizer, _maker(recipe), "reward", whole=True,
        needs=("stable_baselines3", "gymnasium"), profiled=1.0,
    )  # fmt: skip


# DQN's and SAC's numbers are those of RL Baselines3 Zoo, with which they learn these environments.
PROGRAMS = (
    _program(
        "ppo", "PPO of stable-baselines3, CartPole",
        _Recipe("PPO", "CartPole-v1", 4096, 2048, optimizer_options={"eps": 1e-5}),
    ),
    _program(
        "a2c", "A2C of stable-baselines3, CartPole",
        _Recipe(
            "A2C", "CartPole-v1", 4000, 500, "RMSprop",
            optimizer_options={"alpha": 0.99, "eps": 1e-5, "weight_decay": 0},
        ),
    ),
    _program(
        "dqn", "DQN of stable-baselines3, CartPole",
        _Recipe(
            "DQN", "CartPole-v1", 4096, 1536, policy={"net_arch": [256, 256]},
            options={
                "learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000,
                "learning_starts": 1000, "target_update_interval": 10, "train_freq": 256,
                "gradient_steps": 128, "exploration_fraction": 0.16, "exploration_final_eps": 0.04,
            },
            averages="stable_baselines3.dqn.dqn",
        ),
    ),
    _program(
        "sac", "SAC of stable-baselines3, Pendulum",
        _Recipe(
            "SAC", "Pendulum-v1", 600, 200, options={"learning_rate": 1e-3},
            averages="stable_baselines3.sac.sac",
        ),
    ),
)  # fmt: skip
