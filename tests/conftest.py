"""What all tests share: a fixed seed, as many threads, no setting left from test to test."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's own internals warn while they are imported
    import torch._dynamo  # noqa: F401  (the first step() of any optimizer imports it: 2 s)


# One, as the suite itself runs in parallel, unless asked for. Tests of threads set their own.
THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))


@pytest.fixture(autouse=True)
def clean_settings() -> Iterator[None]:
    """Starts every test from the same seed, and puts back what it may have changed."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
