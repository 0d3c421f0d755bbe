"""The training script's augmentation: what may come out, how often, and from which generator."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("sklearn", reason="the training script needs fusedopt[train]")

from fusedopt.train.augment import (
    Compose,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    make_augmentation,
)
from fusedopt.train.data import load_data


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(batch: int, height: int, width: int) -> Tensor:
    return torch.randint(256, (batch, 3, height, width), dtype=torch.uint8, generator=seeded(9))


def test_random_crop_moves_whole_images() -> None:
    images = torch.zeros(200, 1, 16, 16)
    images[:, :, 8, 8] = 1.0
    images[:, :, 8, 9] = 0.5
    shifted = RandomCrop(16, 2, seeded())(images)
    _, _, rows, columns = (shifted == 1).nonzero(as_tuple=True)
    assert len(rows) == len(images) and (shifted != 0).sum() == 2 * len(images)
    assert torch.equal((shifted == 0.5).nonzero()[:, 3], columns + 1)
    moves = set(zip((rows - 8).tolist(), (columns - 8).tolist(), strict=True))
    assert moves == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}


def test_random_crop_out_of_larger_images() -> None:
    images = noise(50, 10, 14)
    crop = RandomCrop(8, generator=seeded())
    for before, after in zip(images, crop(images), strict=True):
        windows = before.unfold(1, 8, 1).unfold(2, 8, 1)
        assert (windows == after[:, None, None]).all(-1).all(-1).all(0).sum() >= 1
    assert torch.equal(crop.eval()(images), images[:, :, 1:9, 3:11])
    with pytest.raises(ValueError, match="can't cut 11 pixels out of 10x14"):
        RandomCrop(11)(images)


def test_random_horizontal_flip() -> None:
    images = noise(1000, 2, 3)
    flipped = RandomHorizontalFlip(0.3, seeded())(images)
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert (same | mirrored).all() and flipped.dtype == torch.uint8
    # 5 standard deviations of a binomial distribution with 1000 draws.
    assert abs((~same).sum().item() - 300) < 5 * math.sqrt(1000 * 0.3 * 0.7)
    assert torch.equal(RandomHorizontalFlip(0)(images), images)
    assert torch.equal(RandomHorizontalFlip(1)(images), images.flip(3))
    assert torch.equal(RandomHorizontalFlip(1).eval()(images), images)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (150, 300), (300, 150)])
def test_rectangles_have_the_asked_for_areas_and_ratios(height: int, width: int) -> None:
    crop = RandomResizedCrop(8, generator=seeded())
    boxes = crop.boxes(5000, height, width).double()
    top, left, h, w = boxes.unbind(1)
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()
    # Sides are whole pixels: half a pixel of each may be missing or too much.
    share = h * w / (height * width)
    slack = 0.5 / h + 0.5 / w
    assert (share > 0.08 * (1 - slack)).all() and (share < 1 + 1e-9).all()
    assert (w / h > 0.75 * (1 - slack)).all() and (w / h < 4 / 3 * (1 + 2 * slack)).all()
    if height == width:
        # Few large rectangles are lost because a side doesn't fit: means lie near the middle.
        assert 0.45 < share.mean() < 0.54 and abs((w / h).log().mean()) < 0.02
        # A place is drawn evenly from all that there are.
        inside = h < height
        assert abs((top / (height - h).clamp(min=1))[inside].mean() - 0.5) < 0.02


def test_a_rectangle_that_never_fits() -> None:
    """Ten draws that don't fit leave the largest rectangle in the middle with a ratio in range."""
    wide = RandomResizedCrop(8, scale=(1.0, 1.0), ratio=(1.0, 1.0), generator=seeded())
    assert wide.boxes(3, 10, 40).tolist() == [[0, 15, 10, 10]] * 3
    assert wide.boxes(3, 40, 10).tolist() == [[15, 0, 10, 10]] * 3
    assert wide.boxes(2, 10, 10).tolist() == [[0, 0, 10, 10]] * 2
    flat = RandomResizedCrop(8, scale=(1.0, 1.0), ratio=(2.0, 3.0), generator=seeded())
    assert flat.boxes(2, 12, 12).tolist() == [[3, 0, 6, 12]] * 2


def test_random_resized_crop_scales_its_rectangle() -> None:
    images = noise(20, 12, 16)
    scaled = RandomResizedCrop(6, generator=seeded())(images)
    boxes = RandomResizedCrop(6, generator=seeded()).boxes(20, 12, 16)
    assert scaled.shape == (20, 3, 6, 6) and scaled.dtype == torch.uint8
    for image, result, (top, left, h, w) in zip(images, scaled, boxes.tolist(), strict=True):
        part = image[None, :, top : top + h, left : left + w].float()
        whole = F.interpolate(part, (6, 6), mode="bilinear", antialias=True)
        torch.testing.assert_close(result, whole[0].round().to(torch.uint8))
    floats = RandomResizedCrop(6, generator=seeded())(images.float())
    assert (floats - scaled).abs().max() <= 0.5
    # A gray image stays what it is, and eval mode takes the whole.
    gray = torch.full((4, 1, 9, 9), 77, dtype=torch.uint8)
    assert (RandomResizedCrop(5, generator=seeded())(gray) == 77).all()
    ramp = torch.arange(8, dtype=torch.float32).expand(1, 1, 8, 8)
    halved = RandomResizedCrop(4).eval()(ramp)
    assert (halved[..., 1:] > halved[..., :-1]).all() and halved.mean() == pytest.approx(3.5)
    assert RandomResizedCrop(5)(gray[:0]).shape == (0, 1, 5, 5)


def test_normalize() -> None:
    images = noise(8, 5, 5)
    channels = (images.double() / 255).transpose(0, 1).flatten(1)
    mean, std = channels.mean(1).tolist(), channels.std(1, correction=0).tolist()
    result = Normalize(mean, std)(images)
    assert result.dtype == torch.float32
    flat = result.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(flat.std(1, correction=0), torch.ones(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(Normalize(mean, std)(images / 255), result)
    constant = Normalize([1.0], [0.0])(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8))
    assert (constant == 0).all()
    assert Normalize(mean, std).state_dict() == {}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_only_the_given_generator_is_drawn_from(dtype: torch.dtype) -> None:
    images = noise(16, 12, 12).to(dtype)

    def changed(seed: int) -> Tensor:
        generator = seeded(seed)
        return Compose(
            RandomCrop(12, 2, generator),
            RandomResizedCrop(8, generator=generator),
            RandomHorizontalFlip(0.5, generator),
        )(images)

    state = torch.get_rng_state()
    first = changed(1)
    assert first.dtype == dtype and torch.equal(first, changed(1))
    assert not torch.equal(first, changed(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_make_augmentation(tmp_path: Path) -> None:
    splits = load_data("digits", root=tmp_path, seed=0)
    images = splits.train.images[:32]
    expected = Normalize(splits.mean, splits.std)(images)
    assert torch.equal(make_augmentation("none", splits, seeded())(images), expected)
    for spec in ("crop", "crop,flip", "resized-crop, flip", ["crop", "flip"]):
        augmentation = make_augmentation(spec, splits, seeded())
        assert augmentation.training
        result = augmentation(images)
        assert result.shape == expected.shape and result.dtype == torch.float32
        assert not torch.equal(result, expected)
        assert torch.equal(make_augmentation(spec, splits, seeded())(images), result)
        assert torch.equal(augmentation.eval()(images), expected)
    for spec in ("rotate", "none,crop", ""):
        with pytest.raises(ValueError, match="there is no augmentation"):
            make_augmentation(spec, splits, seeded())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomCrop(0), "size 0 must be at least 1"),
        (lambda: RandomCrop(4, -1), "padding -1 at least 0"),
        (lambda: RandomHorizontalFlip(1.5), "p must be from 0 to 1, not 1.5"),
        (lambda: RandomResizedCrop(0), "size must be at least 1, not 0"),
        (lambda: RandomResizedCrop(4, scale=(0.5, 2)), "scale must be a range within 0 to 1"),
        (lambda: RandomResizedCrop(4, scale=(0.5, 0.1)), "scale must be a range within 0 to 1"),
        (lambda: RandomResizedCrop(4, ratio=(0, 1)), "ratio must be a range above 0"),
        (lambda: Normalize([0.5], [0.1, 0.1]), "1 means and 2 standard deviations"),
    ],
)
def test_bad_arguments(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
