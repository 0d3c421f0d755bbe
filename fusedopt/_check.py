"""Checks at import that the extension is built, and for the torch that is installed.

A wheel's adapters are chosen by `_load.py`.

Also used by setup.py, and so imports nothing of fusedopt or torch at the top.
"""

import contextlib
import importlib.util
import re
from pathlib import Path

MIN_TORCH = "2.11"
ADAPTERS = Path(__file__).parent / "_adapters"  # of a wheel
TOO_OLD = f"fusedopt needs torch {MIN_TORCH} or newer and found {{}}: run 'pip install -U torch'."


def too_old(version: str) -> bool:
    """Tells whether fusedopt doesn't support this version of torch."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    least = tuple(map(int, MIN_TORCH.split(".")))
    return numbers is None or tuple(map(int, numbers.groups())) < least


def check() -> None:
    """Makes sure that the extension can be loaded.

    Raises:
        ImportError: If torch is missing or too old, the extension isn't built, or it was built for
            another version of torch. The message says what to do.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(
            f"fusedopt needs torch {MIN_TORCH} or newer and found none: run 'pip install torch'."
        ) from None
    if too_old(torch.__version__):
        raise ImportError(TOO_OLD.format(torch.__version__))
    built_for = None
    with contextlib.suppress(ModuleNotFoundError):
        from fusedopt._build_info import TORCH_VERSION

        built_for = TORCH_VERSION
    if built_for is not None and ADAPTERS.is_dir():
        return  # they have their own check
    if built_for is None or importlib.util.find_spec("fusedopt._C") is None:
        raise ImportError(
            f"fusedopt's extension isn't built in {Path(__file__).parent}: run 'pip install "
            "--no-build-isolation -e .' in the source folder, or start Python in another folder "
            "if fusedopt is installed elsewhere."
        )
    if built_for != torch.__version__:
        raise ImportError(
            f"fusedopt was built for torch {built_for} and found torch {torch.__version__}: "
            "build it for this one with 'pip install --no-build-isolation --no-deps "
            "--force-reinstall .' in its source folder."
        )
