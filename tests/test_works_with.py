"""Other libraries' training loops around our classes, which give what torch.optim's give there."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import CLASS_CASES, Case, case, over, with_torch
from helpers import random, undo_rounding
from torch import Tensor
from torch.amp import GradScaler
from torch.nn import Module
from torch.utils.data import DataLoader, TensorDataset
from works_with import BOTH, HOW, LIMIT, assert_close, outcome

import fusedopt

os.environ["HF_HUB_OFFLINE"] = "1"  # read while transformers is imported
LOSS_IN_FLOAT32 = 1e-6  # a tolerance: transformers' models compute it so, whatever their dtype


def network() -> Module:
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)
    return torch.nn.Sequential(*layers).double()


def loader() -> DataLoader:
    inputs = random((24, 6), 1)
    return DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=4)


def loss_of(model: Module, batch: list[Tensor]) -> Tensor:
    inputs, targets = batch
    return (model(inputs).double() - targets).square().mean()


def by_step(module: ModuleType) -> dict[str, float]:
    """Options for our constructor, whose `step` clips then; torch.optim's have no such option."""
    return {"max_grad_norm": LIMIT} if module is fusedopt else {}


def by_loop(module: ModuleType) -> float | None:
    """The limit of a library that clips for torch.optim's classes only."""
    return None if module is fusedopt else LIMIT


def assert_clipped(optimizer: Any) -> None:
    assert float(optimizer.grad_norm) > LIMIT


class TestLightning:
    @pytest.fixture(autouse=True)
    def lightning(self, tmp_path: Path) -> None:
        self.pl = pytest.importorskip("lightning.pytorch", reason=HOW)
        self.folder = tmp_path

    def fit(
        self, module: ModuleType, case: Case, plugins: Any = None, resume: Path | None = None,
        epochs: int = 2, made: Mapping[str, Any] | None = None, **options: Any,
    ) -> dict[str, Any]:  # fmt: skip
        class Task(self.pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.model = network()

            def training_step(self, batch: list[Tensor], index: int) -> Tensor:
                loss = loss_of(self.model, batch)
                return loss * torch.inf if plugins and index == 2 else loss

            def configure_optimizers(self) -> Any:
                optimizer = case.make(self.model.parameters(), module=module, **made or {})
                scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
                return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

        task = Task()
        trainer = self.pl.Trainer(
            max_epochs=epochs, accelerator="cpu", devices=1, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=self.folder, plugins=plugins, **options,
        )  # fmt: skip
        trainer.fit(task, loader(), ckpt_path=resume)
        self.trainer = trainer
        (optimizer,) = trainer.optimizers
        assert type(optimizer).__module__.startswith(module.__name__)
        return outcome(task.model, optimizer)

    @over(with_torch(CLASS_CASES), "case")
    def test_clipping_and_accumulation(self, case: Case) -> None:
        options = {"gradient_clip_val": LIMIT, "accumulate_grad_batches": 2}
        ours, theirs = (self.fit(module, case, **options) for module in BOTH)
        assert_close(ours, theirs)

    @over(with_torch(CLASS_CASES), "case")
    def test_the_step_clips(self, case: Case) -> None:
        """In Lightning's place, or beside it: the smaller limit counts."""
        accumulated = {"accumulate_grad_batches": 2}
        theirs = self.fit(torch.optim, case, gradient_clip_val=LIMIT, **accumulated)
        for limit, clip in ((LIMIT, None), (LIMIT, 100.0), (100.0, LIMIT)):
            made = {"max_grad_norm": limit}
            ours = self.fit(fusedopt, case, made=made, gradient_clip_val=clip, **accumulated)
            assert_close(ours, theirs)
            if limit == LIMIT:
                assert_clipped(*self.trainer.optimizers)

    def fit_in_fp16(
        self, module: ModuleType, case: Case, clip: float | None, **made: Any
    ) -> dict[str, Any]:
        """With a step that overflows."""
        scaler = GradScaler("cpu", init_scale=2.0**8, growth_interval=3)
        plugin = self.pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)
        result = self.fit(module, case, plugin, made=made, gradient_clip_val=clip)
        return {**result, "scale": scaler.get_scale()}

    @pytest.mark.parametrize("clip", [None, LIMIT], ids=["plain", "clipped"])
    @over(with_torch(CLASS_CASES), "case")
    def test_fp16_mixed(self, case: Case, clip: float | None) -> None:
        """The float16 forward passes round differences up."""
        assert_close(*(self.fit_in_fp16(module, case, clip) for module in BOTH), 2e-3)

    @over(with_torch(CLASS_CASES), "case")
    def test_the_step_clips_in_fp16_mixed(self, case: Case) -> None:
        ours, theirs = (self.fit_in_fp16(m, case, by_loop(m), **by_step(m)) for m in BOTH)
        assert_close(ours, theirs, 2e-3)

    @pytest.mark.parametrize("first", BOTH, ids=["ours_first", "torch_first"])
    def test_a_checkpoint_is_continued_with_the_other_class(self, first: ModuleType) -> None:
        adamw = case("AdamW-all")
        expected = self.fit(torch.optim, adamw, epochs=3)
        self.fit(first, adamw, epochs=1)
        self.trainer.save_checkpoint(self.folder / "run.ckpt")
        second = torch.optim if first is fusedopt else fusedopt
        assert_close(self.fit(second, adamw, resume=self.folder / "run.ckpt", epochs=3), expected)


class TestAccelerate:
    @pytest.fixture(autouse=True)
    def accelerate(self, tmp_path: Path) -> None:
        self.accelerate = pytest.importorskip("accelerate", reason=HOW)
        self.folder = tmp_path

    def train(
        self, module: ModuleType, case: Case, clip: float | None = LIMIT, **made: Any
    ) -> dict[str, Any]:
        """Accumulation, clipping, a scheduler; and a state that is saved and loaded again."""
        accelerator = self.accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = network()
        optimizer = case.make(model.parameters(), module=module, **made)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        prepared = accelerator.prepare(model, optimizer, loader(), scheduler)
        for epoch in range(2):
            self.epoch(accelerator, clip, *prepared)
            if epoch == 0:
                accelerator.save_state(str(self.folder))
        accelerator.load_state(str(self.folder))
        undo_rounding(optimizer)
        self.epoch(accelerator, clip, *prepared)
        if made:
            assert_clipped(optimizer)
        return outcome(model, optimizer)

    def epoch(
        self, accelerator: Any, clip: float | None, model: Module, optimizer: Any, batches: Any,
        scheduler: Any,
    ) -> None:  # fmt: skip
        for batch in batches:
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model, batch))
                if accelerator.sync_gradients and clip is not None:
                    accelerator.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()

    @over(CLASS_CASES, "case")
    def test_clipping_accumulation_and_saved_state(self, case: Case) -> None:
        ours, theirs = (self.train(module, case) for module in BOTH)
        assert_close(ours, theirs)

    @over(CLASS_CASES, "case")
    def test_the_step_clips(self, case: Case) -> None:
        """The optimizer, which Accelerate calls only where it isn't accumulating."""
        ours, theirs = (self.train(m, case, by_loop(m), **by_step(m)) for m in BOTH)
        assert_close(ours, theirs)

    def scaled(
        self, module: ModuleType, case: Case, clip: float | None, **made: Any
    ) -> tuple[dict[str, Any], list]:
        self.accelerate.Accelerator(cpu=True)
        model = network()
        inner = case.make(model.parameters(), module=module, **made)
        scaler = GradScaler("cpu", init_scale=2.0**8)
        optimizer = self.accelerate.optimizer.AcceleratedOptimizer(inner, scaler=scaler)
        skipped = []
        for index, batch in enumerate(loader()):
            loss = loss_of(model, batch)
            scaler.scale(loss * torch.inf if index == 2 else loss).backward()
            if clip is not None:
                scaler.unscale_(inner)
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            skipped.append(optimizer.step_was_skipped)
        return outcome(model, inner), skipped

    @pytest.mark.parametrize("clipped", ["never", "by_both", "by_step"])
    @over(CLASS_CASES, "case")
    def test_a_skipped_step_is_noticed(self, case: Case, clipped: str) -> None:
        """Accelerate replaces the optimizer's `step` to see whether the scaler calls it."""
        if clipped == "by_step":
            results = [self.scaled(m, case, by_loop(m), **by_step(m)) for m in BOTH]
        else:
            limit = LIMIT if clipped == "by_both" else None
            results = [self.scaled(module, case, limit) for module in BOTH]
        (ours, ours_skipped), (theirs, skipped) = results
        assert_close(ours, theirs)
        assert ours_skipped == skipped == [False, False, True, False, False, False]


class TestTransformers:
    @pytest.fixture(autouse=True)
    def transformers(self, tmp_path: Path) -> None:
        self.transformers = pytest.importorskip("transformers", reason=HOW)
        pytest.importorskip("accelerate", reason=HOW)
        self.folder = tmp_path

    def model(self) -> Module:
        config = self.transformers.GPT2Config(
            vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0,
            eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        torch.manual_seed(0)
        return self.transformers.GPT2LMHeadModel(config).double()

    def train(
        self, folder: str, model: Module, resume: str | None = None, clip: float = 0.5, **how: Any
    ) -> Any:
        tokens = torch.randint(16, (32, 8), generator=torch.Generator().manual_seed(0))
        arguments = self.transformers.TrainingArguments(
            output_dir=str(self.folder / folder), use_cpu=True, max_steps=4, save_steps=2,
            per_device_train_batch_size=4, gradient_accumulation_steps=2, max_grad_norm=clip,
            lr_scheduler_type="cosine", learning_rate=0.01, weight_decay=0.1, report_to=[],
            disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = self.transformers.Trainer(
            model, arguments, train_dataset=[{"input_ids": t, "labels": t} for t in tokens], **how
        )
        trainer.train(resume_from_checkpoint=resume)
        return outcome(model, trainer.optimizer)

    def train_with(
        self, module: ModuleType, case: Case, folder: str, resume: str | None = None,
        clip: float = 0.5, **made: Any,
    ) -> dict[str, Any]:  # fmt: skip
        model = self.model()
        optimizer = case.make(model.parameters(), module=module, **made)
        result = self.train(folder, model, resume, clip, optimizers=(optimizer, None))
        if made:
            assert_clipped(optimizer)
        return result

    @over(with_torch(CLASS_CASES), "case")
    def test_trainer(self, case: Case) -> None:
        ours, theirs = (self.train_with(module, case, module.__name__) for module in BOTH)
        assert_close(ours, theirs, LOSS_IN_FLOAT32)

    @over(with_torch(CLASS_CASES), "case")
    def test_the_step_clips(self, case: Case) -> None:
        """The Trainer's own `max_grad_norm` is 0 then: it clips nothing."""
        ours, theirs = (
            self.train_with(m, case, m.__name__, clip=by_loop(m) or 0.0, **by_step(m)) for m in BOTH
        )
        assert_close(ours, theirs, LOSS_IN_FLOAT32)

    def test_trainer_continues_torchs_checkpoint(self) -> None:
        adamw = case("AdamW-all")
        expected = self.train_with(torch.optim, adamw, "torch")
        checkpoint = str(self.folder / "torch" / "checkpoint-2")
        ours = self.train_with(fusedopt, adamw, "ours", checkpoint)
        assert_close(ours, expected, LOSS_IN_FLOAT32)

    def test_trainer_makes_the_optimizer(self) -> None:
        """From a class, with the groups that it forms: biases and norms without decay."""
        results = [
            self.train(m.__name__, self.model(), optimizer_cls_and_kwargs=(m.AdamW, {"lr": 0.01}))
            for m in BOTH
        ]
        assert_close(*results, LOSS_IN_FLOAT32)
        assert len(results[0]["lr"]) == 2


class TestTimm:
    """What timm's training script does, written out: NativeScaler's call, an averaged model."""

    def train(
        self, module: ModuleType, case: Case, clip: float | None, **made: Any
    ) -> dict[str, Any]:
        """With a step that overflows."""
        model = network()
        averaged = copy.deepcopy(model).requires_grad_(False)
        optimizer = case.make(model.parameters(), module=module, **made)
        scaler = GradScaler("cpu", init_scale=2.0**8, growth_interval=3)
        for index, batch in enumerate(loader()):
            loss = loss_of(model, batch)
            optimizer.zero_grad()
            scaler.scale(loss * torch.inf if index == 2 else loss).backward(create_graph=False)
            if clip is not None:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            scaler.step(optimizer)
            scaler.update()
            states = averaged.state_dict().values(), model.state_dict().values()
            for average, value in zip(*states, strict=True):
                average.copy_(0.9 * average + 0.1 * value)
        if made:
            assert_clipped(optimizer)
        scaled = {"scale": scaler.get_scale(), "averaged": list(averaged.parameters())}
        return {**outcome(model, optimizer), **scaled}

    @pytest.mark.parametrize("clip", [None, LIMIT], ids=["plain", "clipped"])
    @over(CLASS_CASES, "case")
    def test_scaled_clipped_and_averaged(self, case: Case, clip: float | None) -> None:
        ours, theirs = (self.train(module, case, clip) for module in BOTH)
        assert_close(ours, theirs)

    @over(CLASS_CASES, "case")
    def test_the_step_clips(self, case: Case) -> None:
        """The loop is shorter then: the gradients stay scaled until the step."""
        ours, theirs = (self.train(m, case, by_loop(m), **by_step(m)) for m in BOTH)
        assert_close(ours, theirs)
