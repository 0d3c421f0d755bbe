"""Class weights and balanced sampling, beside scikit-learn's and torch's definitions."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")
pytest.importorskip("tensorboard", reason="the training script needs fusedopt[train]")
pytest.importorskip("PIL", reason="the training script needs fusedopt[train]")

from sklearn.utils.class_weight import compute_class_weight
from test_train_resume import assert_same_run
from train_folder_files import SMALL_IMAGES, write_folder
from train_runs import SMALL, error_of, no_chart, read, short_measurement, train  # noqa: F401

from fusedopt.train import loop, main, world
from fusedopt.train.augment import make_augmentation
from fusedopt.train.balance import balanced_order, balanced_weights, batch_shares
from fusedopt.train.cli import make_parser, parse
from fusedopt.train.options import Options
from fusedopt.train.source import load_splits
from fusedopt.train.start import start

LABELS = torch.tensor([0] * 30 + [1] * 10 + [3] * 2)
PLAIN = ("--optimizer", "sgd", "--momentum", 0, "--weight-decay", 0, "--scheduler", "none")


@pytest.fixture
def uneven(tmp_path: Path) -> tuple[object, ...]:
    """Options for a folder of 30, 10 and 6 images, which train with 20, 7 and 4."""
    for name, count in (("cat", 30), ("cow", 10), ("dog", 6)):
        write_folder(tmp_path / "data", count, (name,))
    return ("--data", f"folder:{tmp_path / 'data'}", *SMALL_IMAGES)


def options_of(*options: object) -> Options:
    return parse(make_parser(), ["--model", "lenet", *map(str, options)])[0]


def test_weights_are_scikit_learns() -> None:
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=LABELS.numpy())
    weights = balanced_weights(LABELS, 5)
    assert weights[[0, 1, 3]].tolist() == pytest.approx(expected.tolist(), rel=1e-7)
    assert weights[0].item() == pytest.approx(42 / (3 * 30))
    assert weights[[2, 4]].tolist() == [0, 0] and weights.dtype == torch.float32
    assert weights[LABELS].mean().item() == pytest.approx(1)


def test_balanced_samples() -> None:
    order = balanced_order(LABELS, seed=3)
    assert len(order) == 42 and order == balanced_order(LABELS, 3) != balanced_order(LABELS, 4)
    many = torch.cat([torch.tensor(balanced_order(LABELS, seed)) for seed in range(200)])
    count = Counter(LABELS[many].tolist())
    assert set(count) == {0, 1, 3}
    for label in count:
        assert count[label] / len(many) == pytest.approx(1 / 3, abs=0.02)
    assert set(many.tolist()) == set(range(42))


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_processes_share_balanced_samples(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    alone = balanced_order(LABELS, 7)
    monkeypatch.setattr(world, "size", lambda: size)
    shares = []
    for rank in range(size):
        monkeypatch.setattr(world, "rank", lambda rank=rank: rank)
        shares.append(balanced_order(LABELS, 7))
    assert len({len(share) for share in shares}) == 1
    together = [share[i] for i in range(len(shares[0])) for share in shares]
    assert together[: len(alone)] == alone and len(together) < len(alone) + size


def first_loss(model: nn.Module, options: Options, weights: Tensor) -> Tensor:
    """The loss of the first step, on all its images at once, as torch weights it."""
    splits = load_splits(options)
    order = loop.epoch_order(splits.train, options, 0)[: options.batch_size * options.accumulate]
    images, labels = zip(*(splits.train[i] for i in order), strict=True)
    logits = model(make_augmentation("none", splits)(torch.stack(images)))
    smoothing = options.label_smoothing
    return F.cross_entropy(logits, torch.tensor(labels), weights, label_smoothing=smoothing)


@pytest.mark.parametrize(
    "more",
    [
        ("--batch-size", 7),
        ("--batch-size", 3, "--accumulate", 3),
        ("--batch-size", 7, "--label-smoothing", 0.2),
        ("--batch-size", 32),
    ],
)
def test_the_loss_is_torchs(uneven: tuple[object, ...], more: tuple[object, ...]) -> None:
    """The first step of plain gradient descent on torch's weighted cross entropy."""
    options = options_of(*uneven, *PLAIN, *more, "--lr", 1, "--class-weights", "balanced")
    splits = load_splits(options)
    state, twin = start(options, splits, None), start(options, splits, None).model
    weights = torch.tensor([31 / (3 * 20), 31 / (3 * 7), 31 / (3 * 4)])
    torch.testing.assert_close(state.class_weights, weights)
    loss = first_loss(twin, options, weights)
    gradients = torch.autograd.grad(loss, list(twin.parameters()))
    before = [parameter.detach().clone() for parameter in state.model.parameters()]

    class Enough(Exception):
        pass

    def stop() -> None:
        raise Enough

    augmentation = make_augmentation("none", splits)
    with pytest.raises(Enough):
        loop.train_epoch(state, splits.train, augmentation, options, stop, "")
    for old, new, gradient in zip(before, state.model.parameters(), gradients, strict=True):
        # Sums in another order; other weights would make a difference of a tenth and more.
        torch.testing.assert_close(
            old - new, gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max().item()
        )


def test_shares_of_images_without_weights() -> None:
    labels = torch.zeros(10, dtype=torch.int64)
    assert batch_shares(labels, None, 4, 1) == [(1, 4), (1, 4), (1, 2)]
    assert batch_shares(labels, None, 3, 2) == [(0.5, 3), (0.5, 3), (3 / 4, 3), (1 / 4, 1)]


@pytest.mark.parametrize("size", [4, 31, 64])
def test_an_epochs_loss_is_that_of_all_its_images(uneven: tuple[object, ...], size: int) -> None:
    options = options_of(*uneven, *PLAIN, "--lr", 0, "--class-weights", "balanced")
    options = replace(options, batch_size=size)
    splits = load_splits(options)
    state = start(options, splits, None)
    whole = replace(options, batch_size=64)
    loss = first_loss(state.model, whole, state.class_weights).item()
    augmentation = make_augmentation("none", splits)
    figures = loop.train_epoch(state, splits.train, augmentation, options, lambda: None, "")
    assert figures.loss == pytest.approx(loss, rel=1e-5)


def test_validation_stays_unweighted(uneven: tuple[object, ...]) -> None:
    """With a learning rate of 0, all that changes is the training loss."""
    plain, weighted = (
        train(*uneven, *PLAIN, "--lr", 0, "--epochs", 1, *more)
        for more in ((), ("--class-weights", "balanced"))
    )
    for name in ("validation_loss", "validation_accuracy", "train_accuracy"):
        assert plain.rows[0][name] == weighted.rows[0][name]
    assert plain.test == weighted.test
    assert plain.rows[0]["train_loss"] != weighted.rows[0]["train_loss"]


@pytest.mark.parametrize(
    ("option", "precision"),
    [("--class-weights", "bf16"), ("--class-weights", "fp16"), ("--sampler", "fp32")],
)
def test_resuming_bit_for_bit(
    tmp_path: Path, uneven: tuple[object, ...], option: str, precision: str
) -> None:
    options = (*uneven, option, "balanced", "--accumulate", 2, "--checkpoint-every", 1)
    options += ("--precision", precision, "--label-smoothing", 0.1)
    train(*options, "--epochs", 2, "--out", tmp_path / "whole")
    left, show = iter(range(99)), loop._show

    class Stop(Exception):
        pass

    def stop(*arguments: Any) -> None:
        if next(left) == 6:
            raise Stop
        show(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_show", stop)
        with pytest.raises(Stop):
            train(*options, "--epochs", 2, "--out", tmp_path / "parts")
    assert (read(tmp_path / "parts")["epoch"], read(tmp_path / "parts")["batch"]) == (1, 2)
    train("--resume", tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_it_helps_rare_classes(tmp_path: Path, uneven: tuple[object, ...]) -> None:
    """What a network learns first, without looking at images: which classes are frequent."""

    def shares(*more: object) -> Tensor:
        model = train(*uneven, *PLAIN, "--lr", 0.02, "--epochs", 6, "--keep", "last", *more).model
        return model(torch.zeros(1, 3, 16, 16)).softmax(1)[0]

    plain = shares()
    for more in (("--class-weights", "balanced"), ("--sampler", "balanced")):
        assert shares(*more)[2] > plain[2]


def test_options(
    tmp_path: Path, uneven: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    both = ("--class-weights", "balanced", "--sampler", "balanced")
    line = error_of(capsys, *both)
    assert line.endswith("--sampler: balanced samples need no --class-weights; give one of the two")
    line = error_of(capsys, "--class-weights", "equal")
    assert "argument --class-weights: invalid choice: 'equal'" in line
    train(*SMALL, "--epochs", 1, "--class-weights", "balanced", "--out", tmp_path / "run")
    line = error_of(capsys, "--resume", tmp_path / "run", "--sampler", "balanced")
    assert "--sampler: balanced samples need no --class-weights" in line
    train(*uneven, "--epochs", 1, "--class-weights", "balanced")
    assert "the training loss weights the classes with 0.517 to 2.58" in capsys.readouterr().out
    train(*uneven, "--epochs", 1, *both[2:])
    assert "drawn with replacement, all classes equally often" in capsys.readouterr().out


def test_compare(
    tmp_path: Path, uneven: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusedopt.train.compare.draw_comparison", lambda *arguments: None)
    options = (*uneven, "--class-weights", "balanced", "--epochs", 1, "--model", "lenet")
    options += ("--optimizers", "adam", "--seeds", 1, "--out", tmp_path / "out")
    main(["compare", *map(str, options)])
    saved = read(tmp_path / "out" / "adam-torch-seed0")["options"]
    assert saved["class_weights"] == "balanced" and saved["sampler"] is None
