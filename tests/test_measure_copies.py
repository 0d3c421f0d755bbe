"""The copies that `fusedopt.measure` steps: they lie as the originals do, and nothing is left."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import CLASS_CASES, DTYPES, LAYOUTS, Case, Layout, over
from helpers import all_params, assert_identical, make_params, random, set_grads
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt
from fusedopt import comparison, copies, memory, twins

measuring = sys.modules["fusedopt.measure"]
ADAMS = [fusedopt.AdamW, torch.optim.AdamW]
STATE = ("step", "exp_avg", "exp_avg_sq")
CALLS = 30


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_MOST", 1)
    monkeypatch.setattr(comparison, "ROW", 2)


def answer_of(optimizer: Optimizer, calls: int = CALLS) -> Any:
    """What `measure` says, called with the same gradients all the time."""
    for _ in range(calls):
        answer = fusedopt.measure(optimizer)
    return answer


def stepped(cls: Any, params: list[Any], grads: list[Any], **options: Any) -> Any:
    optimizer = cls(params, **options)
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad
    optimizer.step()
    return optimizer


def reasons(optimizer: Any) -> list[str]:
    return [row.reason for row in fusedopt.explain(optimizer).rows]


def lying(tensor: Tensor) -> tuple[Any, ...]:
    """How a tensor lies in memory."""
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, tensor.device


# --- How they lie.


@over(DTYPES, "dtype")
@over(LAYOUTS, "layout")
def test_layouts(layout: Layout, dtype: torch.dtype) -> None:
    param = Parameter(layout.param(random(layout.shape, 0, dtype)))
    grad = layout.grad(random(layout.shape, 1, dtype))
    optimizer = stepped(fusedopt.AdamW, [param], [grad])
    made = copies.copies_of(optimizer, STATE)
    made.set_gradients()
    ((original, twin),) = made.pairs
    assert original is param and type(twin) is Parameter and twin.requires_grad
    pairs = [(param, twin), (grad, twin.grad)]
    pairs += [(value, made.state[twin][key]) for key, value in optimizer.state[param].items()]
    for value, other in pairs:
        assert_identical(other.detach(), value.detach())
        assert other.numel() == 0 or other.data_ptr() != value.data_ptr()
        assert lying(other)[1:2] + lying(other)[3:] == lying(value)[1:2] + lying(value)[3:]
    own = twins.implementations(optimizer)[0]
    kernels = twins.make_twin(optimizer, own, made, made.state, None)
    assert reasons(kernels) == reasons(optimizer)
    answer = answer_of(optimizer)
    alike = param.stride() == grad.stride() == torch.empty_like(param).stride()
    wrong = "torch.optim.AdamW, fused=True is wrong for tensors with these strides"
    assert (wrong in answer.notes) == (not alike)


@pytest.mark.parametrize("cls", ADAMS)
@pytest.mark.parametrize(
    "layout", [each for each in LAYOUTS if each.id in ("expanded_grad", "sliced")]
)
def test_torchs_fused_step_that_would_go_astray(cls: Any, layout: Layout) -> None:
    """It isn't run: it would read and write memory that belongs to something else."""
    p = Parameter(layout.param(random(layout.shape, 0, torch.float32)))
    p.grad = layout.grad(random(layout.shape, 1, torch.float32))
    answer = answer_of(cls([p], fused=True))
    text = "torch.optim.AdamW, fused=True is wrong for tensors with these strides"
    if cls is fusedopt.AdamW:
        assert text in answer.notes
    else:
        assert str(answer) == f"fusedopt.measure: {text}"
    halves = fusedopt.SGD([Parameter(torch.zeros(1000, dtype=torch.bfloat16))], lr=0.1)
    set_grads(all_params(halves), 0)
    assert "doesn't step all elements" in str(answer_of(halves))


def test_memory_that_is_shared() -> None:
    """Copies share it, too: so the copy of our optimizer takes the same way."""
    base = torch.zeros(9)
    params = [Parameter(base[:5]), Parameter(base[3:])]
    optimizer = stepped(fusedopt.AdamW, params, [torch.ones(5), torch.ones(6)])
    made = copies.copies_of(optimizer, STATE)
    first, second = (twin for _, twin in made.pairs)
    assert second.data_ptr() - first.data_ptr() == 3 * 4
    own = twins.implementations(optimizer)[0]
    made.set_gradients()
    twin = twins.make_twin(optimizer, own, made, made.state, None)
    assert reasons(twin) == reasons(optimizer) != [""]
    assert made.size == 9 * 4 + 2 * 4 + 2 * (5 + 6) * 4


@pytest.mark.filterwarnings("ignore:.*duplicate parameters")
def test_what_is_listed_twice() -> None:
    """A parameter in a group, and a gradient of two parameters."""
    p, q, grad = Parameter(torch.zeros(3)), Parameter(torch.zeros(3)), torch.ones(3)
    made = copies.copies_of(stepped(fusedopt.AdamW, [p, p, q], [grad, grad, grad]), STATE)
    first, second, third = made.groups[0]["params"]
    assert first is second and len(made.pairs) == 2
    made.set_gradients()
    assert first.grad is third.grad is not grad


@pytest.mark.parametrize("cls", ADAMS)
def test_parameters_without_gradients(cls: Any) -> None:
    """They are passed over as in the loop, and take no memory; lazy ones, too."""
    frozen = torch.zeros(1000, 1000)
    params = [*make_params(dtype=torch.float32), Parameter(frozen, requires_grad=False)]
    optimizer = cls(
        [*params, torch.nn.UninitializedParameter(), Parameter(torch.zeros(2, dtype=int), False)]
    )
    set_grads(params[:2], 0)
    answer = answer_of(optimizer)
    assert (answer.tensors, len(answer.timings)) == (2, 3)
    made = copies.copies_of(optimizer, STATE)
    assert [p.numel() for p in made.groups[0]["params"]] == [35, 13] + [0] * 5
    assert made.size == (35 + 13) * 4


@pytest.mark.parametrize("module", [fusedopt, torch.optim])
def test_sparse_gradients(module: Any) -> None:
    layer = torch.nn.Embedding(100, 4, sparse=True)
    layer(torch.tensor([1, 5, 5])).sum().backward()
    before = layer.weight.grad
    answer = answer_of(module.SGD(layer.parameters(), lr=0.1))
    assert {t.name for t in answer.timings} == {"fusedopt.SGD", "torch.optim.SGD"}
    assert "torch.optim.SGD, fused=True" in answer.notes[0]
    assert "sparse gradients" in answer.notes[0]
    assert layer.weight.grad is before and not before.is_coalesced()


@pytest.mark.skipif(not hasattr(Tensor, "grad_dtype"), reason="torch 2.13 has it")
def test_gradients_of_another_dtype() -> None:
    p = Parameter(torch.zeros(5, dtype=torch.bfloat16))
    p.grad_dtype = None
    p.grad = torch.ones(5)
    answer = answer_of(fusedopt.AdamW([p]))
    assert "fusedopt.AdamW" in [t.name for t in answer.timings]
    assert p.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex(dtype: torch.dtype) -> None:
    p = Parameter(torch.ones(5, dtype=dtype))
    p.grad = torch.ones_like(p)
    assert len(answer_of(torch.optim.AdamW([p])).timings) >= 2


@pytest.mark.parametrize("where", ["param", "grad", "state"])
def test_classes_of_tensors_are_named(where: str) -> None:
    class Mine(Tensor):
        pass

    p = Parameter(torch.ones(3).as_subclass(Mine) if where == "param" else torch.ones(3))
    optimizer = fusedopt.AdamW([p])
    p.grad = torch.ones(3).as_subclass(Mine) if where == "grad" else torch.ones(3)
    if where == "state":
        optimizer.state[p]["exp_avg"] = torch.ones(3).as_subclass(Mine)
    assert "which isn't copied" in str(answer_of(optimizer))


@over(CLASS_CASES, "case")
def test_before_there_is_state(case: Case) -> None:
    """The first copy makes it, and the others share it."""
    params = make_params(dtype=torch.float32)
    optimizer = case.make(params)
    set_grads(params, 0)
    optimizer.state.clear()
    assert answer_of(optimizer).timings
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("cls", ADAMS)
def test_where_torch_looks_for_step_counts(cls: Any) -> None:
    """On the parameter's device with fused=True or capturable=True, and else on the CPU."""
    for capturable, place in ((False, "cpu"), (True, "meta")):
        p = Parameter(torch.zeros(3, device="meta"))
        p.grad = torch.zeros(3, device="meta")
        optimizer = cls([p], capturable=capturable)
        state = {key: torch.zeros(3, device="meta") for key in STATE[1:]}
        optimizer.state[p] = {"step": torch.zeros(()), **state}
        made = copies.copies_of(optimizer, STATE)
        own, other, *_, fused = twins.implementations(optimizer)
        found = []
        for each in (own, other, fused):
            twin = twins.make_twin(optimizer, each, made, made.state, None)
            (state,) = twin.state.values()
            found.append(state["step"].device.type)
            assert state["exp_avg"] is made.state[made.pairs[0][1]]["exp_avg"]
        assert found == ["cpu", place, "meta"]


# --- DTensors.


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


@pytest.mark.parametrize("cls", ADAMS)
def test_pieces_of_tensors(cls: Any, mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """No rank waits for another: they may be measured at different times, or only one of them."""
    p = Parameter(DTensor.from_local(torch.ones(3, 2), mesh, [Shard(0)]))
    p.grad = DTensor.from_local(torch.ones(3, 2), mesh, [Shard(0)])
    optimizer = cls([p])
    optimizer.step()
    with CommDebugMode() as debug:
        made = copies.copies_of(optimizer, STATE)
        made.set_gradients()
    assert debug.get_total_counts() == 0
    ((_, twin),) = made.pairs
    assert type(twin) is type(twin.grad) is type(made.state[twin]["exp_avg"]) is DTensor
    assert made.size == 3 * 6 * 4 + 4
    for name in ("all_reduce", "all_gather"):
        monkeypatch.setattr(dist, name, None)
    optimizer = cls([p], lr=0.1)
    for _ in range(CALLS):
        answer = fusedopt.measure(optimizer, max_grad_norm=1.0)
    assert answer.phase == "step + zero_grad"
    assert len(answer.timings) >= 2
    assert any("clipping isn't in it" in note for note in answer.notes)


def test_gradients_that_would_be_exchanged(mesh: DeviceMesh) -> None:
    p = Parameter(DTensor.from_local(torch.ones(3, 2), mesh, [Shard(0)]))
    p.grad = DTensor.from_local(torch.ones(6, 2), mesh, [Partial()])
    assert "ranks would exchange it" in str(answer_of(fusedopt.AdamW([p])))


# --- Memory.


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """References to all copies and twins that are made."""
    found: list[weakref.ref[Any]] = []

    def copies_of(*args: Any) -> Any:
        result = copies.copies_of(*args)
        state = [value for each in result.state.values() for value in each.values()]
        found.extend(weakref.ref(t) for t in [result, *state, *(t for _, t in result.pairs)])
        return result

    def make_twin(*args: Any) -> Any:
        result = twins.make_twin(*args)
        found.extend(weakref.ref(t) for t in (result, *(p.grad for p in all_params(result))))
        return result

    monkeypatch.setattr(comparison, "copies_of", copies_of)
    monkeypatch.setattr(comparison, "make_twin", make_twin)
    return found


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive(made: list[weakref.ref[Any]]) -> int:
    return sum(each() is not None for each in made)


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("cls", ADAMS)
def test_nothing_is_left(cls: Any, made: list[weakref.ref[Any]]) -> None:
    """Not when there is the answer, nor of the optimizer when it dies."""
    params = make_params(dtype=torch.float32)
    optimizer, before = cls(params), len(measuring._watches)
    set_grads(params, 0)
    optimizer.step()
    while fusedopt.measure(optimizer) is None:
        pass
    assert len(made) > 20 and alive(made) == 0
    assert len(measuring._watches) == before + 1
    reference = weakref.ref(optimizer)
    del optimizer
    assert reference() is None
    assert len(measuring._watches) == before


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("cls", ADAMS)
def test_an_optimizer_that_dies_meanwhile(cls: Any, made: list[weakref.ref[Any]]) -> None:
    params = make_params(dtype=torch.float32)
    optimizer, before = cls(params), len(measuring._watches)
    set_grads(params, 0)
    optimizer.step()
    while not made:
        assert fusedopt.measure(optimizer) is None
    assert fusedopt.measure(optimizer) is None
    assert alive(made) > 10
    del optimizer
    assert alive(made) == 0
    assert len(measuring._watches) == before


@pytest.mark.usefixtures("no_collection")
def test_large_copies_do_not_wait_for_the_next_step(
    made: list[weakref.ref[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "_KEPT", 100)
    optimizer = fusedopt.AdamW(make_params(dtype=torch.float32))
    set_grads(all_params(optimizer), 0)
    answers = [fusedopt.measure(optimizer) for _ in range(6)]
    assert answers[:4] == [None] * 4
    assert answers[4] is answers[5] and len(answers[4].timings) == 3
    assert alive(made) == 0


def test_where_memory_is_short(
    made: list[weakref.ref[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    p = Parameter(torch.zeros(1 << 20))
    p.grad = torch.zeros(1 << 20)
    optimizer = fusedopt.AdamW([p])
    optimizer.step()
    monkeypatch.setattr(copies, "free_memory", lambda: 10**9)
    monkeypatch.setattr(copies, "_bytes_of", lambda tensors: 310 * 10**6)
    assert str(answer_of(optimizer)) == "fusedopt.measure: copies take 0.9 GB, and 1.0 GB are free"
    assert made == []


def test_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least of what the system and both versions of control groups allow."""
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  8000 kB\nOther: 1 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    assert memory.free_memory(tmp_path) == 8000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5000\n")
    assert memory.free_memory(tmp_path) == 8000 * 1024
    (tmp_path / "memory.max").write_text("9000\n")
    assert memory.free_memory(tmp_path) == 4000
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 300\n")
    assert memory.free_memory(tmp_path) == 4300
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1000\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("3000\n")
    assert memory.free_memory(tmp_path) == 0
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    assert memory.free_memory(tmp_path / "none") is None
    assert memory.free_memory() is None or memory.free_memory() >= 0
