"""The training script's networks: their sizes, their initial weights, heads and depths."""

from __future__ import annotations

import pytest
import torch

from fusedopt.train.models import (
    ModelError,
    depth_of_parameters,
    head_of,
    make_model,
    replace_head,
)


@pytest.mark.parametrize(("name", "parameters"), [("lenet", 62_006), ("resnet20", 269_722)])
def test_parameters_are_as_many_as_published(name: str, parameters: int) -> None:
    model = make_model(name, 10, 3, 32)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_lenet_says_what_size_it_needs() -> None:
    with pytest.raises(ModelError, match="at least 16 pixels, not 8"):
        make_model("lenet", 10, 1, 8)


@pytest.mark.parametrize("name", ["lenet", "resnet20"])
def test_head_and_depth(name: str) -> None:
    model = make_model(name, 10, 1, 16)
    depths = depth_of_parameters(model)
    assert list(depths) == [name for name, _ in model.named_parameters()]
    assert list(depths.values()) == sorted(depths.values())
    assert max(depths.values()) == {"lenet": 4, "resnet20": 10}[name]
    assert replace_head(model, 7) is model and head_of(model).out_features == 7
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 7)
