"""The Python examples of the documentation run, each file from top to bottom."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

import fusedopt

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page: Path) -> None:
    """A block without a language right below a Python block is what that one prints."""
    text = page.read_text()
    blocks = _BLOCK.findall(text)
    assert len(blocks) == text.count("```python\n") > 0
    names = {"model": torch.nn.Linear(3, 2)}  # what the examples take for granted
    for code, printed in blocks:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(code, page.name, "exec"), names)
        if printed:
            isa = fusedopt._C.isa()
            assert output.getvalue().split() == printed.replace("avx2", isa).split()


@pytest.mark.parametrize("name", fusedopt._C.optimizers())
def test_every_optimizer_is_described(name: str) -> None:
    page = (ROOT / "docs" / "optimizers.md").read_text()
    assert re.search(rf"^## {name}$", page, re.MULTILINE)
    assert f"| [{name}](#{name.lower()}) |" in page
    assert f"`{name}`" in (ROOT / "CHANGELOG.md").read_text()
    assert f"`{name}`" in (fusedopt.__doc__ or "")
    assert re.search(rf"\b{name}\b", (ROOT / "README.md").read_text())


OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "csrc" / "README.md", *ROOT.glob("benchmarks/**/*.md")]


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
