"""The code blocks of docs/switching.md, as the tests run them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

SWITCHING = Path(__file__).resolve().parents[1] / "docs" / "switching.md"


def block(language: str, word: str) -> str:
    """The page's only block in this language that has the word in it."""
    fenced = rf"^```{language}\n(.*?)^```"
    found = re.findall(fenced, SWITCHING.read_text(), re.MULTILINE | re.DOTALL)
    (code,) = (each for each in found if word in each)
    return code


def names(word: str, **given: Any) -> dict[str, Any]:
    """What a block of Python defines."""
    code = compile(block("python", word), SWITCHING.name, "exec")
    exec(code, given)
    return given
