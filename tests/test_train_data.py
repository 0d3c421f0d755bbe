"""The training script's data: splits, loaders, files of each format, and augmentation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")

from fusedopt.train import data
from fusedopt.train.augment import RandomCrop


def test_split_is_disjoint_complete_and_stratified() -> None:
    labels = [i % 10 for i in range(600)] + [0] * 200
    split = data.split_indices(labels, seed=3)
    assert sorted(sum(split, [])) == list(range(len(labels)))
    for part, share in zip(split, (0.7, 0.1, 0.2), strict=True):
        assert len(part) == share * len(labels)
        count = Counter(labels[i] for i in part)
        assert all(abs(count[c] - share * labels.count(c)) <= 1 for c in range(10))
    assert split == data.split_indices(labels, seed=3)
    assert split.test != data.split_indices(labels, seed=4).test


def test_digits(tmp_path: Path) -> None:
    splits = data.load_data("digits", root=tmp_path, seed=0)
    parts = splits.train, splits.validation, splits.test
    assert [len(part) for part in parts] == [1257, 180, 360]
    assert (splits.in_channels, splits.image_size, len(splits.classes)) == (1, 16, 10)
    for part in parts:
        image, label = part[0]
        assert image.shape == (1, 16, 16) and image.dtype == torch.uint8 and type(label) is int
        assert part.images.min() == 0 and part.images.max() == 255
        assert set(part.labels.tolist()) == set(range(10))


def test_random_crop_moves_whole_images() -> None:
    images = torch.zeros(200, 1, 16, 16)
    images[:, :, 8, 8] = 1.0
    images[:, :, 8, 9] = 0.5
    shifted = RandomCrop(16, 2, torch.Generator().manual_seed(1))(images)
    _, _, rows, columns = (shifted == 1).nonzero(as_tuple=True)
    assert len(rows) == len(images) and (shifted != 0).sum() == 2 * len(images)
    assert torch.equal((shifted == 0.5).nonzero()[:, 3], columns + 1)
    moves = set(zip((rows - 8).tolist(), (columns - 8).tolist(), strict=True))
    assert moves == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}
    assert torch.equal(shifted, RandomCrop(16, 2, torch.Generator().manual_seed(1))(images))
