"""The descents that docs/optimizers.md shows, and the command that draws them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import fusedopt  # noqa: E402
from benchmarks import landscape_charts, landscapes, results  # noqa: E402
from benchmarks.descents import (  # noqa: E402
    DESCENTS,
    FUNCTIONS,
    STEPS,
    TOLERANCES,
    Descent,
    Function,
    final_losses,
    trajectory,
)


def test_the_waves_and_their_gradient_are_those_of_the_complex_exponential() -> None:
    x, y = (torch.linspace(-3, 3, 101, dtype=torch.float64).requires_grad_() for _ in range(2))
    ours = FUNCTIONS["waves"].value(x, y)
    formula = 2 * x**2 + 10 * y**2 + 10 * torch.exp(5j * y).imag
    torch.testing.assert_close(ours, formula)
    gradients = [torch.autograd.grad(value.sum(), (x, y)) for value in (ours, formula)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(gradients[0], (4 * x, 20 * y + 50 * torch.cos(5 * y)))


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_the_minimum_is_the_least_value(function: Function) -> None:
    y = torch.linspace(-3, 3, 60_001, dtype=torch.float64)
    least = function.value(torch.zeros_like(y), y).min()
    assert function.minimum <= least < function.minimum + 1e-6


@pytest.mark.parametrize("name", DESCENTS)
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_trajectories_lie_on_torchs(function: Function, name: str) -> None:
    ours, theirs = (
        trajectory(function, DESCENTS[name], module, STEPS) for module in (fusedopt, torch.optim)
    )
    assert ours.shape == (STEPS + 1, 2)
    assert ours[-1].isfinite().all() and not torch.equal(ours[0], ours[-1])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", TOLERANCES)
def test_a_curves_points_are_single_descents(name: str) -> None:
    function, descent, rates = FUNCTIONS["bowl"], DESCENTS[name], [0.0, 0.01, 0.04, 0.3]
    expected = []
    for rate in rates:
        one = Descent(name, descent.cls, {"bowl": rate}, descent.options)
        end = trajectory(function, one, torch.optim, 20)[-1]
        expected.append(function.value(*end) - function.minimum)
    ours = final_losses(function, descent, fusedopt, rates, 20)
    torch.testing.assert_close(ours, torch.stack(expected), rtol=1e-9, atol=1e-12)


def test_the_command_draws_and_writes_a_result_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    all_pages = landscape_charts.PAGES
    monkeypatch.setattr(landscape_charts, "PAGES", {"adam": all_pages["adam"]})  # drawing is slow
    path = tmp_path / "numbers.json"
    small = ["--steps", "3", "--rates", "5", "--seconds", "0"]
    landscapes.main([*small, "--folder", str(tmp_path / "new"), "--json", str(path)])
    printed = capsys.readouterr().out
    assert "greatest distance: " in printed and "5 groups of one" in printed
    drawn = {figure.name for figure in (tmp_path / "new").iterdir()}
    not_drawn = {f"{page}.png" for page in all_pages if page != "adam"}
    assert drawn | not_drawn == {figure.name for figure in (ROOT / "docs").glob("*.png")}
    assert all(figure.read_bytes()[:4] == b"\x89PNG" for figure in (tmp_path / "new").iterdir())
    rows = results.load(path)["rows"]
    counts = {kind: sum(row["kind"] == kind for row in rows) for kind in (r["kind"] for r in rows)}
    assert counts == {"trajectory": 18, "tolerance": 24, "groups": 7}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rates", "1"], "1 is not at least 2"),
        (["--steps", "x"], "'x' is no number"),
        (["--folder", __file__], "--folder: "),
    ],
)
def test_the_command_refuses_what_makes_no_sense(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        landscapes.main(arguments)
    assert message in capsys.readouterr().err
