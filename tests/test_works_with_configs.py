"""Programs that make their optimizer from a configuration, as docs/switching.md says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pages
import pytest
import torch
from helpers import kernels, random
from torch.utils.data import DataLoader, TensorDataset
from works_with import HOW

import fusedopt


def assert_as_configured(optimizer: Any) -> None:
    """After a step, as both files of the page say."""
    assert type(optimizer) is fusedopt.AdamW and kernels(optimizer) == {"adamw"}
    (group,) = optimizer.param_groups
    assert group["lr"] == 0.01 and tuple(group["betas"]) == (0.9, 0.95)
    assert optimizer.max_grad_norm == 1.0 and optimizer.grad_norm is not None


class TestHydra:
    @pytest.fixture(autouse=True)
    def hydra(self) -> None:
        pytest.importorskip("hydra", reason=HOW)

    def test_a_target(self) -> None:
        """A list comes as omegaconf's own class of lists."""
        from hydra.utils import instantiate
        from omegaconf import OmegaConf

        config = OmegaConf.create(pages.block("yaml", "_target_"))
        model = torch.nn.Linear(3, 2)
        optimizer = instantiate(config.optimizer)(model.parameters())
        model(random((4, 3), 0, torch.float32)).sum().backward()
        optimizer.step()
        assert_as_configured(optimizer)


class TestLightningCLI:
    @pytest.fixture(autouse=True)
    def cli(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("jsonargparse", reason=HOW)
        self.module = pytest.importorskip("lightning.pytorch", reason=HOW)
        self.folder = tmp_path
        monkeypatch.setattr(sys, "argv", ["program"])

    def run(self, *arguments: str) -> Any:
        class Task(self.module.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.model = torch.nn.Linear(3, 1).double()

            def training_step(self, batch: Any, index: int) -> Any:
                return (self.model(batch[0]) - 1).square().mean()

            def train_dataloader(self) -> DataLoader:
                return DataLoader(TensorDataset(random((8, 3), 0)), batch_size=4)

        quiet = {
            "max_epochs": 1, "accelerator": "cpu", "devices": 1, "logger": False,
            "enable_checkpointing": False, "enable_progress_bar": False,
            "enable_model_summary": False, "default_root_dir": str(self.folder),
        }  # fmt: skip
        from lightning.pytorch.cli import LightningCLI

        cli = LightningCLI(
            Task, args=["fit", *arguments], trainer_defaults=quiet, save_config_callback=None,
            seed_everything_default=False,
        )  # fmt: skip
        (optimizer,) = cli.trainer.optimizers
        return cli.model.model, optimizer

    def test_on_the_command_line(self) -> None:
        options = "--optimizer.lr=0.01", "--optimizer.betas=[0.9,0.95]"
        ours, optimizer = self.run("--optimizer=fusedopt.AdamW", *options)
        assert type(optimizer) is fusedopt.AdamW and kernels(optimizer) == {"adamw"}
        assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)
        theirs, optimizer = self.run("--optimizer=torch.optim.AdamW", *options)
        assert type(optimizer) is torch.optim.AdamW
        torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()))

    def test_in_a_file(self) -> None:
        """With an option that torch.optim's classes don't have."""
        path = self.folder / "config.yaml"
        path.write_text(pages.block("yaml", "class_path"))
        _, optimizer = self.run("--config", str(path))
        assert_as_configured(optimizer)

    def test_short_names_are_no_longer_one_classs(self) -> None:
        with pytest.raises(SystemExit):
            self.run("--optimizer=AdamW", "--optimizer.lr=0.01")
