"""docs/switching.md: checkpoints that look like other libraries', without the libraries."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pages
import pytest
import torch
from helpers import assert_identical, assert_unchanged, contents, make_params, step
from torch.optim import Optimizer

import fusedopt


def trained(steps: int = 3) -> Optimizer:
    optimizer = fusedopt.AdamW(make_params(), lr=0.01, weight_decay=0.1)
    for seed in range(steps):
        step(optimizer, seed)
    return optimizer


def as_apex(saved: dict[str, Any]) -> dict[str, Any]:
    """What apex's FusedAdam would have saved: a count in the group, and other options."""
    saved = deepcopy(saved)
    for group in saved["param_groups"]:
        counts = {float(saved["state"][index].pop("step")) for index in group["params"]}
        (count,) = counts
        options = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay", "params")}
        group.clear()
        group.update(options, bias_correction=True, step=int(count))
    return saved


def as_deepspeed(saved: dict[str, Any]) -> dict[str, Any]:
    """What DeepSpeedCPUAdam would have saved: counts that are no tensors."""
    saved = deepcopy(saved)
    for state in saved["state"].values():
        state["step"] = int(state["step"])
    for group in saved["param_groups"]:
        keys = ("lr", "betas", "eps", "weight_decay", "amsgrad", "params")
        options = {key: group[key] for key in keys}
        group.clear()
        group.update(options, bias_correction=True)
    return saved


@pytest.mark.parametrize("library", ["apex", "deepspeed"])
def test_their_checkpoints_are_continued(library: str) -> None:
    ours = trained()
    saved = as_apex(ours.state_dict()) if library == "apex" else as_deepspeed(ours.state_dict())
    if library == "apex":
        before = deepcopy(saved)
        converted = pages.names("from_apex", torch=torch)["from_apex"](saved)
        assert_identical(saved, before)
        saved = converted
    params = [p.detach().clone().requires_grad_() for p in ours.param_groups[0]["params"]]
    other = fusedopt.AdamW(params, lr=1.0)
    other.load_state_dict(saved)
    for optimizer in (ours, other):
        step(optimizer, 3)
    assert_identical(contents(other)[1:], contents(ours)[1:])


def test_apexs_checkpoint_as_it_is_changes_nothing() -> None:
    other = trained()
    before = contents(other)
    with pytest.raises(KeyError, match="step"):
        other.load_state_dict(as_apex(trained(steps=5).state_dict()))
    assert_unchanged(other, before)
