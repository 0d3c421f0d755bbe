"""Writes what type checkers and editors know of the optimizers: fusedopt/adam.pyi and the like.

A constructor takes torch's options and ours, and only a running program puts them together
(fusedopt/constructors.py). Run `python tests/stubs.py` after a change of either.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

from torch.optim.optimizer import ParamsT

import fusedopt

PACKAGE = Path(fusedopt.__file__).parent


def stub(name: str) -> str:
    """Returns the text of an optimizer's stub, formatted as ruff does."""
    cls = getattr(fusedopt, name)
    module = importlib.import_module(cls.__module__)
    ours, torchs = cls.__bases__
    imports = [
        "from torch import optim",
        "from torch.optim.optimizer import ParamsT",
        *(f"from {torchs.__module__} import {n} as {n}" for n in module.__all__ if n != name),
    ]
    return "\n".join(
        [
            "# Written by tests/stubs.py.",
            "import torch",
            *sorted(imports),
            "",
            f"from {ours.__module__} import {ours.__name__}",
            "",
            f"class {name}({ours.__name__}, optim.{torchs.__name__}):",
            "    def __init__(",
            *(line for parameter in _parameters(cls) for line in _lines(parameter)),
            "    ) -> None: ...\n",
        ]
    )


def _parameters(cls: type) -> list[str]:
    """Returns the constructor's parameters, and the `*` between them."""
    found = []
    for parameter in inspect.signature(cls.__init__).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in found:
            found.append("*")
        found.append(str(parameter).replace(inspect.formatannotation(ParamsT), "ParamsT"))
    return found


def _lines(parameter: str) -> list[str]:
    """Returns a parameter's lines: where one is too long, a tuple has its values apart."""
    line = f"        {parameter},"
    if len(line) <= 100 or " = (" not in line:
        return [line]
    start, values = parameter.removesuffix(")").split(" = (")
    return [
        f"        {start} = (",
        *(f"            {value}," for value in values.split(", ")),
        "        ),",
    ]


if __name__ == "__main__":
    for name in fusedopt._C.optimizers():
        (PACKAGE / f"{name.lower()}.pyi").write_text(stub(name))
