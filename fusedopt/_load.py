"""Puts the extension where `from fusedopt import _C` finds it.

What is built from source has one extension, for one torch, and Python imports it. A wheel has an
adapter for each minor version of torch, in the folder `_adapters`, beside the core that they share:
the one for this torch becomes `fusedopt._C`. Where there is none, `_without_kernels.py` does, and
every optimizer runs torch's own step.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

from fusedopt._check import ADAPTERS, check

_NAME = "fusedopt._C"

why_not = ""  # why there are no kernels; empty: there are


def adapters() -> dict[str, Path]:
    """Returns a wheel's adapters for this Python by torch's version, such as ``2.13``, in order."""
    found = {}
    for path in ADAPTERS.glob("_C_torch*"):
        match = re.fullmatch(r"_C_torch(\d+)_(\d+)(\..+)", path.name)
        if match and match[3] in EXTENSION_SUFFIXES:
            found[int(match[1]), int(match[2])] = path
    return {f"{major}.{minor}": found[major, minor] for major, minor in sorted(found)}


def load() -> None:
    """Loads the extension, or warns that there is none for this torch.

    FUSEDOPT_KERNELS=0 in the environment leaves it out, without a warning.

    Raises:
        ImportError: If torch is missing or too old, or there is neither a wheel's adapters nor an
            extension that was built for this torch.
    """
    global why_not
    if _NAME in sys.modules:
        return
    check()
    if os.environ.get("FUSEDOPT_KERNELS") == "0":
        why_not = "FUSEDOPT_KERNELS=0"
    elif ADAPTERS.is_dir():
        why_not = _load_adapter()
        if why_not:
            warnings.warn(_warning(), RuntimeWarning, stacklevel=3)
    if why_not:
        from fusedopt import _without_kernels

        _put(_without_kernels)


def _load_adapter() -> str:
    """Loads the adapter for this torch, and returns why it can't; empty: it has."""
    import torch

    version = torch.__version__
    minor = ".".join(re.findall(r"\d+", version)[:2])
    path = adapters().get(minor)
    if path is None:
        return f"no adapter for torch {version}"
    spec = importlib.util.spec_from_file_location(_NAME, path)
    assert spec is not None and spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        return f"the adapter for torch {minor} can't be loaded: {error}"
    _put(module)
    return ""


def _put(module: ModuleType) -> None:
    sys.modules[_NAME] = module
    sys.modules["fusedopt"]._C = module  # type: ignore[attr-defined]


def _warning() -> str:
    there = ", ".join(adapters()) or "none"
    return (
        "fusedopt has no kernels for this torch, so every optimizer runs torch's own step:"
        f" {why_not} (adapters: {there}). Install another fusedopt, or build it for this torch as"
        " its README says."
    )
