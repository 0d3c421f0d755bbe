"""DTensor parameters, in one process of a mesh that is only pretended."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import CLASS_CASES, SCALARS, Case, case, channels_last, over, with_torch
from helpers import assert_identical, assert_unchanged, contents, kernels, random
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, zeros
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt

# The process is the second of two, so that uneven shards are the smaller ones here.
SHARDED: tuple[tuple[tuple[int, ...], Placement], ...] = (
    ((6, 5), Shard(0)),
    ((3, 8), Shard(1)),
    ((7,), Shard(0)),
    ((1, 4), Shard(0)),  # nothing is left for this process
    ((4, 3), Replicate()),
    ((), Replicate()),
)


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def shard(values: Tensor, mesh: DeviceMesh, placement: Placement) -> DTensor:
    """This process' piece of the values, which every process has."""
    pieces = [values, values]
    if isinstance(placement, Shard):
        pieces = list(values.chunk(2, placement.dim))
        pieces += [values.narrow(placement.dim, 0, 0)] * (2 - len(pieces))
    local = pieces[mesh.get_local_rank()].clone(memory_format=torch.contiguous_format)
    return DTensor.from_local(
        local, mesh, [placement], run_check=False, shape=values.shape, stride=values.stride()
    )


def make_params(mesh: DeviceMesh) -> list[Parameter]:
    return [
        Parameter(shard(random(shape, i), mesh, placement))
        for i, (shape, placement) in enumerate(SHARDED)
    ]


def set_grads(params: list[Parameter], seed: int) -> None:
    for i, p in enumerate(params):
        p.grad = shard(random(p.shape, 31 * seed + i), p.device_mesh, p.placements[0])


def local(value: Any) -> Any:
    return value.to_local() if isinstance(value, DTensor) else value


def local_contents(optimizer: Optimizer) -> list[Any]:
    """Parameters, gradients and states of one process."""
    return [
        [local(p.detach()), local(p.grad), {k: local(v) for k, v in optimizer.state[p].items()}]
        for p in optimizer.param_groups[0]["params"]
    ]


def reasons(optimizer: Optimizer) -> set[str]:
    return {row.reason for row in fusedopt.explain(optimizer).rows}


@over(CLASS_CASES, "case")
def test_pieces_get_the_bits_of_plain_tensors(case: Case, mesh: DeviceMesh) -> None:
    params = make_params(mesh)
    plain = [Parameter(p.to_local().detach().clone()) for p in params]
    ours, theirs = case.make(params), case.make(plain)
    for seed in range(3):
        set_grads(params, seed)
        for p, q in zip(params, plain, strict=True):
            q.grad = p.grad.to_local().clone()
        assert reasons(ours) == {""}
        ours.step()
        theirs.step()
        assert_identical(local_contents(ours), local_contents(theirs))
        for p, (_, placement) in zip(params, SHARDED, strict=True):
            for key, value in ours.state[p].items():
                assert isinstance(value, DTensor) == (key not in SCALARS)
                assert key in SCALARS or value.placements == (placement,)
                assert key in SCALARS or value.shape == p.shape


@over(with_torch(CLASS_CASES), "case")
def test_same_state_as_torch(case: Case, mesh: DeviceMesh) -> None:
    def scenario(module: Any) -> Optimizer:
        optimizer = case.make(make_params(mesh), module=module, foreach=False)
        for seed in range(3):
            set_grads(optimizer.param_groups[0]["params"], seed)
            optimizer.step()
        return optimizer

    try:
        theirs = scenario(torch.optim)
    except RuntimeError as error:
        pytest.skip(f"torch doesn't step DTensors with it: {error}")
    ours = scenario(fusedopt)
    params = zip(*(o.param_groups[0]["params"] for o in (ours, theirs)), strict=True)
    for p, q in params:
        assert list(ours.state[p]) == list(theirs.state[q])
        for value, other in zip(ours.state[p].values(), theirs.state[q].values(), strict=True):
            assert type(value) is type(other)
            assert (value.dtype, value.shape) == (other.dtype, other.shape)
            torch.testing.assert_close(local(value), local(other), rtol=1e-11, atol=1e-12)
            if isinstance(value, DTensor):
                assert value._spec == other._spec
        torch.testing.assert_close(p.to_local(), q.to_local(), rtol=1e-11, atol=1e-12)


def test_versions_are_counted_where_torch_counts_them(mesh: DeviceMesh) -> None:
    param = Parameter(shard(random((4, 4), 0), mesh, Shard(0)))
    for module in (torch.optim, fusedopt):
        optimizer = module.Adadelta([param], foreach=False)
        before, local_before = param._version, param._local_tensor._version
        set_grads([param], 0)
        optimizer.step()
        optimizer.step()
        assert param._version > before
        assert param._local_tensor._version == local_before
        for key in ("square_avg", "acc_delta"):
            assert optimizer.state[param][key]._version > 0
            assert optimizer.state[param][key]._local_tensor._version == 0
        assert param.grad._version == 0
    loss = (param * param).sum()
    set_grads([param], 1)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def other_grad(param: Parameter) -> None:
    param.grad = shard(random(param.shape, 1), param.device_mesh, Replicate())


def partial_grad(param: Parameter) -> None:
    grad = DTensor.from_local(random(param.shape, 1), param.device_mesh, [Partial()])
    param.grad = grad


@pytest.mark.parametrize("edit", [other_grad, partial_grad])
def test_gradients_placed_otherwise_are_torchs(
    edit: Callable[[Parameter], None], mesh: DeviceMesh
) -> None:
    params = make_params(mesh)
    set_grads(params, 0)
    edit(params[0])
    optimizer = fusedopt.AdamW(params)
    rows = {row.reason: row.tensors for row in fusedopt.explain(optimizer).rows}
    assert rows == {"its gradient is placed otherwise": 1, "": len(params) - 1}


def test_what_is_not_placed_as_its_parameter_is_torchs(mesh: DeviceMesh) -> None:
    grad = zeros(4, 4, device_mesh=mesh, placements=[Shard(0)])
    optimizer = fusedopt.SGD([Parameter(deepcopy(grad))], lr=0.1, momentum=0.9)
    (param,) = optimizer.param_groups[0]["params"]
    param.grad = grad
    optimizer.step()
    assert reasons(optimizer) == {""}
    state = optimizer.state[param]
    state["momentum_buffer"] = zeros(4, 4, device_mesh=mesh, placements=[Shard(1)])
    assert reasons(optimizer) == {"its state is placed otherwise"}
    state["momentum_buffer"] = torch.zeros(2, 4)
    assert reasons(optimizer) == {"its state is not a DTensor"}
    # The mesh too: the same two processes, in another order.
    other = DeviceMesh("cpu", [1, 0])
    state["momentum_buffer"] = zeros(4, 4, device_mesh=other, placements=[Shard(0)])
    assert reasons(optimizer) == {"its state is placed otherwise"}
    # An equal mesh and equal placements of their own are the same.
    again = DTensor.from_local(torch.zeros(2, 4), DeviceMesh("cpu", [0, 1]), [Shard(0)])
    state["momentum_buffer"] = again
    assert reasons(optimizer) == {""}
    param._spec = zeros(4, 4, device_mesh=mesh, placements=[Shard(1)])._spec
    assert reasons(optimizer) == {"its gradient is placed otherwise"}
    summands = Parameter(DTensor.from_local(torch.ones(3), mesh, [Partial()], run_check=False))
    assert reasons(fusedopt.SGD([summands])) == {"a placement other than Shard and Replicate"}


def test_a_derived_class_is_torchs(mesh: DeviceMesh) -> None:
    class Derived(DTensor):
        pass

    param = shard(random((4, 4), 0), mesh, Shard(0))
    derived = Derived(param._local_tensor, param._spec, requires_grad=True)
    assert reasons(fusedopt.SGD([derived])) == {"tensor subclass"}


def test_a_wrong_shape_changes_nothing(mesh: DeviceMesh) -> None:
    """Also where this process' piece has the right shape."""
    params = make_params(mesh)
    set_grads(params, 0)
    optimizer = fusedopt.Adam(params)
    optimizer.step()
    piece = torch.zeros_like(params[2].to_local())
    wrong = DTensor.from_local(piece, mesh, [Shard(0)], shape=torch.Size([6]), stride=(1,))
    optimizer.state[params[2]]["exp_avg"] = wrong
    before = contents(optimizer)
    with pytest.raises(RuntimeError, match=r"\['params'\]\[2\]: state\['exp_avg'\] has shape"):
        optimizer.step()
    assert_unchanged(optimizer, before)


def test_pieces_that_share_memory_are_torchs(mesh: DeviceMesh) -> None:
    memory = torch.zeros(8)
    params = [Parameter(DTensor.from_local(memory[i : i + 4], mesh, [Shard(0)])) for i in (0, 3)]
    for p in params:
        p.grad = torch.zeros_like(p)
    assert reasons(fusedopt.SGD(params)) == {"shares memory with another tensor of this optimizer"}
    grad = DTensor.from_local(memory[2:6], mesh, [Shard(0)])
    params[0].grad = grad
    assert reasons(fusedopt.SGD(params[:1])) == {"shares memory with its gradient"}


@over([case("SGD-all"), case("Adam-all")], "case")
def test_layouts_of_pieces(case: Case, mesh: DeviceMesh) -> None:
    """Strided and channels-last pieces, and gradients that lie otherwise."""
    values, grads = random((4, 3, 5, 5), 0), random((4, 3, 5, 5), 1)
    grad = DTensor.from_local(grads, mesh, [Shard(0)])
    results = []
    for piece in (values.clone(), channels_last(values), values.repeat(1, 1, 1, 2)[..., ::2]):
        piece.copy_(values)
        param = Parameter(DTensor.from_local(piece, mesh, [Shard(0)]))
        optimizer = case.make([param])
        for _ in range(2):
            param.grad = grad.clone()
            assert reasons(optimizer) == {""}
            optimizer.step()
        results.append(local_contents(optimizer))
    assert_identical(results[1], results[0])
    assert_identical(results[2], results[0])


def test_scaled_gradients_are_unscaled_once(mesh: DeviceMesh) -> None:
    """One gradient for two parameters, and one whose elements are all the same number."""
    params = [Parameter(shard(random((6, 4), i), mesh, Shard(0))) for i in range(3)]
    plain = [Parameter(p.to_local().detach().clone()) for p in params]
    shared = shard(random((6, 4), 9), mesh, Shard(0))
    one = DTensor.from_local(random((1, 1), 8).expand(3, 4), mesh, [Shard(0)])
    for group, grads in ((params, [shared, shared, one]), (plain, [shared, shared, one])):
        for p, grad in zip(group, grads, strict=True):
            p.grad = (grad if group is params else grad.to_local()).detach()
    ours, theirs = fusedopt.AdamW(params), fusedopt.AdamW(plain)
    for optimizer in (ours, theirs):
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
        optimizer.step()
        optimizer.found_inf = torch.tensor(1.0)
        before = contents(optimizer)
        optimizer.step()
        assert_unchanged(optimizer, before)
    assert_identical(local_contents(ours), local_contents(theirs))


def test_state_dict_moves_both_ways(mesh: DeviceMesh) -> None:
    for first, second in ((fusedopt, torch.optim), (torch.optim, fusedopt)):
        params = make_params(mesh)
        optimizer = first.AdamW(params, foreach=False)
        set_grads(params, 0)
        optimizer.step()
        others = [Parameter(p.detach().clone()) for p in params]
        loaded = second.AdamW(others, foreach=False)
        saved = optimizer.state_dict()
        saved["state"] = {
            i: {key: value.clone() for key, value in state.items()}
            for i, state in saved["state"].items()
        }
        loaded.load_state_dict(saved)
        for o in (optimizer, loaded):
            set_grads(o.param_groups[0]["params"], 1)
            o.step()
        for p, q in zip(params, others, strict=True):
            torch.testing.assert_close(p.to_local(), q.to_local(), rtol=1e-11, atol=1e-12)
    assert kernels(loaded) == {"adamw"}


def test_no_python_runs_per_parameter(mesh: DeviceMesh) -> None:
    def calls(count: int) -> int:
        params = [Parameter(shard(random((4,), i), mesh, Shard(0))) for i in range(count)]
        optimizer = fusedopt.AdamW(params)
        set_grads(params, 0)
        optimizer.step()
        optimizer.step()
        seen = 0

        def count_call(*_: Any) -> None:
            nonlocal seen
            seen += 1

        sys.setprofile(count_call)
        try:
            optimizer.step()
        finally:
            sys.setprofile(None)
        return seen

    assert calls(30) == calls(2)


def test_new_specs_at_every_step(mesh: DeviceMesh) -> None:
    """Each is compared once; old ones are forgotten, and addresses are used again."""
    param = Parameter(shard(random((4, 4), 0), mesh, Shard(0)))
    optimizer = fusedopt.Adagrad([param])
    for step in range(60):
        placement = Replicate() if step % 3 == 0 else Shard(0)
        param.grad = shard(random((4, 4), step), mesh, placement)
        expected = "its gradient is placed otherwise" if step % 3 == 0 else ""
        assert reasons(optimizer) == {expected}
        if not expected:
            optimizer.step()
    assert optimizer.state[param]["step"] == 40
