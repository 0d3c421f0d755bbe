"""The benchmarks measure what they say: workloads, implementations, rounds, floor, memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import over

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import fusedopt  # noqa: E402
from benchmarks import (  # noqa: E402
    floor,
    gpt,
    hooks,
    memory,
    phase,
    precision,
    tables,
    timing,
)
from benchmarks.implementations import IMPLEMENTATIONS, Absent, Implementation, check  # noqa: E402
from benchmarks.measure import CONTIGUOUS, DTYPES, FLOOR, Case, run_case  # noqa: E402
from benchmarks.optimizers import OPTIMIZERS, parameter_sized_states  # noqa: E402
from benchmarks.workloads import WORKLOADS, Workload, from_model  # noqa: E402
from fusedopt import _C  # noqa: E402

TINY = Workload("tiny", "two tensors", ((3, 4), (5,)))
PATHS = [IMPLEMENTATIONS[name] for name in ("fusedopt", "fused", "foreach", "for-loop")]


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 1e-5)


@pytest.mark.parametrize(
    ("name", "tensors", "elements"),
    [
        ("16m", 1, 1 << 24),
        ("resnet50", 161, 25_557_032),
        ("resnet50-nhwc", 161, 25_557_032),
        ("gpt2", 148, 124_439_808),
        ("vit-b16", 152, 86_567_656),
        ("1000x64", 1000, 64_000),
        ("10000x16", 10_000, 160_000),
        ("1", 1, 1),
    ],
)
def test_workloads_have_the_networks_shapes(name: str, tensors: int, elements: int) -> None:
    assert len(WORKLOADS[name].shapes) == tensors
    assert WORKLOADS[name].elements == elements


@over(DTYPES, "dtype")
def test_inputs_are_repeatable_and_neither_zero_nor_subnormal_when_squared(dtype: str) -> None:
    first, second = (WORKLOADS["1000x64"].parameters(DTYPES[dtype], "cpu") for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b) and torch.equal(a.grad, b.grad)
        assert (a.grad.abs() >= 0.5).all() and (a.grad.abs() <= 1.5).all()
    assert first[0].grad.lt(0).any() and first[0].grad.gt(0).any()


def test_channels_last_lies_so_in_memory() -> None:
    (param,) = Workload("w", "", ((2, 3, 4, 5),), True).parameters(torch.float32, "cpu")
    for tensor in (param, param.grad):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()


@pytest.fixture
def own_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "network_of_a_user"
    (tmp_path / f"{name}.py").write_text(
        "import torch\n"
        "def make(): return torch.nn.Linear(3, 2)\n"
        "def tensors(): return [torch.ones(4, requires_grad=True)]\n"
        "def broken(): raise KeyError('x')\n"
        "def number(): return [1]\n"
        "def none(): return None\n"
        "def frozen(): return [torch.ones(4)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_a_users_network_gives_a_workload(own_network: str) -> None:
    assert from_model(f"{own_network}:make").shapes == ((2, 3), (2,))
    assert from_model(f"{own_network}:tensors").shapes == ((4,),)


@pytest.mark.parametrize("factory", ["", ":", ":nothing", ":broken", ":number", ":none", ":frozen"])
def test_a_factory_that_fails_is_named(own_network: str, factory: str) -> None:
    with pytest.raises(ValueError, match=f"--model {own_network}{factory}"):
        from_model(own_network + factory)


def test_a_missing_module_is_named() -> None:
    with pytest.raises(ValueError, match="ModuleNotFoundError.*no_such_module"):
        from_model("no_such_module:make")


@over(OPTIMIZERS, "name")
def test_bytes_follow_from_the_states_that_torch_keeps(name: str) -> None:
    choice = OPTIMIZERS[name]
    optimizer = IMPLEMENTATIONS["for-loop"].make(choice, TINY.parameters(torch.float32, "cpu"))
    optimizer.step()
    assert parameter_sized_states(optimizer) == choice.states
    assert choice.bytes_moved(10, 4) == 10 * {0: 12, 1: 20, 2: 28, 3: 36}[choice.states]


@over(DTYPES, "dtype")
@over(OPTIMIZERS, "name")
def test_fusedopt_passes_the_benchmarks_own_check(name: str, dtype: str) -> None:
    assert check(IMPLEMENTATIONS["fusedopt"], OPTIMIZERS[name], DTYPES[dtype], "cpu") == ""


def test_a_path_that_does_not_do_the_work_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: None)
    monkeypatch.setitem(IMPLEMENTATIONS, "for-loop", IMPLEMENTATIONS["fusedopt"])
    found = check(IMPLEMENTATIONS["foreach"], OPTIMIZERS["sgd"], torch.float32, "cpu")
    assert found == "wrong: off by 100% of what a step changes"


@pytest.mark.parametrize(
    ("implementation", "optimizer", "reason"),
    [
        (IMPLEMENTATIONS["fused"], "rmsprop", "has no such RMSprop: .*fused"),
        (IMPLEMENTATIONS["apex"], "adam", "doesn't run on cpu"),
        (Implementation("x", "no_such_package.optim"), "adam", "not installed"),
        (Implementation("x", "torch.optim", classes={}), "adam", "has no Adam"),
        (
            Implementation("x", "torch.optim", ignores=("amsgrad",)),
            "adamw-amsgrad",
            "has no amsgrad",
        ),
        (Implementation("x", "torch.no_such_module"), "adam", "ModuleNotFoundError"),
    ],
)
def test_what_is_absent_says_why(
    implementation: Implementation, optimizer: str, reason: str
) -> None:
    with pytest.raises(Absent, match=reason):
        implementation.make(OPTIMIZERS[optimizer], TINY.parameters(torch.float32, "cpu"))


def test_a_case_has_a_row_for_each_implementation_and_thread_count() -> None:
    case = Case(OPTIMIZERS["rmsprop"], TINY, "float32", "cpu")
    threads_before = torch.get_num_threads()
    rows = run_case(case, PATHS, [1, 2], seconds=0)
    assert torch.get_num_threads() == threads_before
    assert [row["threads"] for row in rows] == [1] * 5 + [2] * 5
    by_name = {row["implementation"]: row for row in rows[:5]}
    assert list(by_name) == [FLOOR, "fusedopt", "fused", "foreach", "for-loop"]
    assert by_name["fused"]["status"].startswith("absent: has no such RMSprop")
    assert "seconds" not in by_name["fused"]
    assert by_name[FLOOR]["floor_percent"] == 100
    ours = by_name["fusedopt"]
    assert ours["status"] == "" and ours["bytes"] == 17 * 20
    assert ours["torch_best"] in ("foreach", "for-loop")
    assert by_name[ours["torch_best"]]["ratio"] == {"median": 1, "p10": 1, "p90": 1}
    assert ours["seconds"]["p10"] <= ours["seconds"]["median"] <= ours["seconds"]["p90"]


def test_a_wrong_path_is_shown_but_is_nobodys_best(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"fused": "wrong: off", "foreach": "wrong: off"}
    monkeypatch.setattr("benchmarks.measure._check", lambda i, *rest: wrong.get(i.name, ""))
    rows = run_case(Case(OPTIMIZERS["adam"], TINY, "float32", "cpu"), PATHS, [1], seconds=0)
    assert {row["torch_best"] for row in rows if "ratio" in row} == {"for-loop"}
    assert "fused (wrong: off)" in tables.step_table(rows)


def test_a_channels_last_workload_is_compared_with_a_contiguous_one() -> None:
    strided = Workload("w", "", ((2, 3, 4, 5),), channels_last=True)
    rows = run_case(Case(OPTIMIZERS["adam"], strided, "float32", "cpu"), PATHS[:2], [1], 0)
    assert [r["implementation"] for r in rows] == [FLOOR, "fusedopt", "fused", CONTIGUOUS]
    assert ["over_contiguous" in r for r in rows] == [False, True, False, False]


def test_what_does_not_fit_into_memory_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 100)
    rows = run_case(Case(OPTIMIZERS["adam"], TINY, "float32", "cpu"), PATHS, [1], seconds=0)
    assert len(rows) == 1 and rows[0]["status"].startswith("skipped: needs")
    assert "skipped" in tables.step_table(rows)


@pytest.mark.parametrize("seconds", [0.01, 1.0])
def test_every_step_has_one_turn_in_every_round_in_random_order(seconds: float) -> None:
    calls: list[str] = []

    class Clock(timing.CpuClock):
        def measure(self, step: Callable[[], object], repeats: int) -> timing.Times:
            assert repeats == 1
            step()
            return timing.Times(seconds, seconds, seconds)

    names = "abcd"
    steps = {name: (lambda name=name: calls.append(name)) for name in names}
    samples = timing.interleave(steps, Clock(), seconds=0)
    turn = 1 if seconds > timing.LONG_STEP_SECONDS else 2  # a cold step before a sample
    measured = calls[16:]  # after four of each to warm up
    assert measured[::turn] == measured[turn - 1 :: turn]
    rounds = [measured[i : i + 4 * turn : turn] for i in range(0, len(measured), 4 * turn)]
    assert len(rounds) == timing.MIN_ROUNDS and len(set(map(tuple, rounds))) > 1
    assert all(sorted(order) == list(names) for order in rounds)
    for values in samples.values():
        assert len(values.seconds) == timing.MIN_ROUNDS
        assert len(values.first) == (timing.MIN_ROUNDS if turn == 2 else 0)


def test_ratios_are_taken_round_by_round() -> None:
    spread = timing.Spread.of_ratios([2.0, 20.0, 6.0], [1.0, 10.0, 2.0])
    assert spread.median == 2.0
    assert timing.Spread.of([float(i) for i in range(11)]) == timing.Spread(5.0, 1.0, 9.0)


@pytest.mark.parametrize("words", [0, 1, 31, 1000, 32768, 100_001])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_stream_kernel_updates_every_word(words: int, count: int) -> None:
    torch.set_num_threads(2)
    read, *updated = (torch.randint(-(1 << 31), 1 << 31, (words,)).int() for _ in range(1 + count))
    expected = [read ^ tensor for tensor in updated]
    before = read.clone()
    _C.stream(read, updated)
    assert torch.equal(read, before)
    assert all(torch.equal(a, b) for a, b in zip(updated, expected, strict=True))


def test_the_stream_kernel_refuses_what_it_cannot_walk() -> None:
    words = torch.ones(8, dtype=torch.int32)
    for read, updated, error in [
        (words, [], ValueError),
        (words, [words] * 5, ValueError),
        (words, [words[:4]], ValueError),
        (words, [words.float()], ValueError),
        (words[::2], [words[::2]], ValueError),
        (None, [words], TypeError),
    ]:
        with pytest.raises(error, match="stream"):
            _C.stream(read, updated)


@pytest.mark.parametrize("states", [0, 1, 2, 3])
def test_the_floor_runs_for_every_number_of_states(states: int) -> None:
    floor.make_floor(states, 400, "cpu")()


def test_peak_memory_is_what_a_step_needs_for_a_while() -> None:
    size = 64 << 20
    peak = memory.peak_during(lambda: torch.ones(size // 4), "cpu")
    if peak is None:
        pytest.skip("this system doesn't tell peak memory")
    assert 0.9 * size < peak < 1.2 * size


def test_phase() -> None:
    """Each part of each side, whose networks are the same; a floor where there is much to move."""
    small = phase.rows_of(phase.SMALL, phase.measure(phase.SMALL, 0), 1)
    assert {row["what"] for row in small} == set(phase.PARTS)
    names = {(row["implementation"], row["what"]) for row in small}
    assert len(small) == len(names) == 6 * (1 + len(phase.TORCH)) + 2
    mine = [row for row in small if row["implementation"] == "fusedopt"]
    assert all(row["ratio"]["median"] > 0 and "floor_percent" not in row for row in mine)
    assert len(phase.table_rows(small)) == 1 + len(phase.PARTS)
    assert set(phase.floors(WORKLOADS["16m"])) == set(phase.PARTS) - {"zero_grad", "clip"}
    sides = phase.make_sides(phase.SMALL)
    for side in sides.values():
        for param, grad in zip(
            side.params, phase.SMALL.parameters(torch.float32, "cpu"), strict=True
        ):
            param.grad = grad.grad
        side.clipped_step()
    first, *others = ([*side.model.state_dict().values()] for side in sides.values())
    for other in others:
        torch.testing.assert_close(other, first)


def test_hooks() -> None:
    """Every loop with every implementation learns the same, and leaves no gradient."""
    models: list[torch.nn.Module] = []

    def make() -> torch.nn.Module:
        models.append(torch.nn.Linear(3, 2))
        return models[-1]

    network = hooks.Network("tiny", make, (4, 3))
    for optimizer in hooks.makers().values():
        for in_hooks in (False, True):
            step = hooks.training_step(network, optimizer, in_hooks)
            before = models[-1].weight.detach().clone()
            for _ in range(2):
                step()
            assert not torch.equal(models[-1].weight, before)
            assert all(p.grad is None for p in models[-1].parameters())
            torch.testing.assert_close(models[-1].state_dict(), models[0].state_dict())
    called = {row["implementation"]: row for row in hooks.measure_calls(0)}
    assert set(called) == set(hooks.makers())
    assert all(row["seconds"]["median"] > 0 for row in called.values())


def test_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tracked, trained and timed, made short: tables and a chart of it."""
    monkeypatch.setattr(precision, "_gradients", lambda name, seed: [(6500, torch.ones(8))])
    monkeypatch.setattr(precision, "_ELEMENTS", 8)
    rows = precision.track("Adam")
    monkeypatch.setattr(gpt, "train", lambda make, dtype, steps, seed: 2.0 + seed)
    rows += [precision.learn(mode, 1, seed) for mode in precision.TRAINED for seed in range(2)]
    rows += precision.clock(TINY, 1)
    assert [len(table) for table in precision.table_rows(rows)] == [
        2, 1 + len(precision.TRAINED), 1 + len(precision.MODES),
    ]  # fmt: skip
    precision.draw(rows, tmp_path / "precision.png")
    assert (tmp_path / "precision.png").stat().st_size > 1000


def test_the_gpt_learns() -> None:
    """From about log 128 at the start, of bfloat16 weights."""
    losses = [
        gpt.train(lambda params: fusedopt.AdamW(params, lr=3e-3), torch.bfloat16, steps, 0)
        for steps in (1, 8)
    ]
    assert losses[1] < losses[0] < 5.2
