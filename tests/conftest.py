"""What all tests share: a fixed seed, one thread, no setting left from one test to the next."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's own internals warn while they are imported
    import torch._dynamo  # noqa: F401  (the first step() of any optimizer imports it: 2 s)


@pytest.fixture(autouse=True)
def clean_settings() -> Iterator[None]:
    """Starts every test from the same seed, and puts back what it may have changed."""
    torch.set_num_threads(1)  # the suite itself runs in parallel; tests of threads set their own
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
