"""A device for tests: a GPU where there is one, and everywhere a stand-in for one.

The stand-in (tests/cpp/stand_in.cpp) is a device of torch's whose memory is the host's. The plan
treats it as it does CUDA; its launches run on the CPU sweep. What only a GPU can show (the kernels
themselves, streams) is shown there.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fusedopt import _C

BUILT = Path(__file__).parent.parent / "build" / "release"


class Device:
    """What the tests need of a device.

    Attributes:
        name: As torch calls it, such as ``cuda``.
    """

    name = "cuda"

    @contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Fails if the host waits for the device inside."""
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @contextmanager
    def capture(self) -> Iterator[Any]:
        """Gives a function that replays what is done inside, which isn't done meanwhile."""
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            yield graph.replay


class StandIn(Device):
    """The stand-in, for as long as a test runs."""

    name = "privateuseone"

    def __init__(self, module: Any) -> None:
        self.module = module

    @contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Fails if the host has asked for a number of the device's inside."""
        self.module.waits()
        yield
        assert self.module.waits() == 0

    @contextmanager
    def capture(self) -> Iterator[Any]:
        """Gives a function that replays the launches made inside."""
        self.module.capture(True)
        try:
            yield self.module.replay
        finally:
            self.module.capture(False)


def _load() -> Any:
    """The stand-in's module, loaded once per process; None if it isn't built."""
    if "_stand_in" not in sys.modules:
        files = list(BUILT.glob("_stand_in*.so"))
        if not files:
            return None
        spec = importlib.util.spec_from_file_location("_stand_in", files[0])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules["_stand_in"] = module
        # torch asks this of a device's module, also in tests that know nothing of the stand-in.
        asked = ModuleType("privateuseone")
        asked.is_available = asked._is_in_bad_fork = lambda: False
        asked.manual_seed_all = lambda seed: None
        torch._register_device_module("privateuseone", asked)
    return sys.modules["_stand_in"]


@pytest.fixture(params=["stand_in", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """Each test that takes it runs on both."""
    if request.param == "cuda":
        if not _C.cuda_built():
            pytest.skip("this build has no CUDA kernels")
        if not torch.cuda.is_available():
            pytest.skip("no GPU")
        yield Device()
        return
    module = _load()
    if module is None:
        pytest.skip("needs build/release/_stand_in, which make cpp-test builds")
    _C._set_accelerator(module.accelerator())
    yield StandIn(module)
    module.capture(False)
    _C._set_accelerator(None)
