"""Odd circumstances: transforms, re-entry, threads, foreign state, memory that has moved."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter

import fusedopt
from fusedopt.optimizer import plan_of


def with_grads(*sizes: int) -> list[Parameter]:
    """Parameters of ones with gradients of ones."""
    params = [Parameter(torch.ones(size)) for size in sizes]
    for param in params:
        param.grad = torch.ones_like(param)
    return params


def test_function_transforms_refuse_as_torch_does() -> None:
    (param,) = with_grads(5)
    optimizer = fusedopt.SGD([param], lr=0.1, momentum=0.9)

    def function(x: Tensor) -> Tensor:
        optimizer.step()
        return (x * param.detach()).sum()

    with pytest.raises(RuntimeError):
        torch.func.grad(function)(torch.ones(5))
    assert torch.equal(param, torch.ones(5))


@pytest.mark.parametrize("steps_before", [0, 1])
def test_fake_tensor_mode_does_what_it_does_with_torch(steps_before: int) -> None:
    results = []
    for module in (fusedopt, torch.optim):
        (param,) = with_grads(5)
        optimizer = module.SGD([param], lr=0.1, momentum=0.9)
        for _ in range(steps_before):
            optimizer.step()
        with FakeTensorMode(allow_non_fake_inputs=True):
            optimizer.step()
        results.append(param.detach().clone())
    torch.testing.assert_close(*results)


def test_explain_beside_a_step_in_another_thread() -> None:
    (param,) = with_grads(2_000_000)
    optimizer = fusedopt.AdamW([param])
    thread = threading.Thread(target=lambda: [optimizer.step() for _ in range(10)])
    thread.start()
    for _ in range(20):
        plan_of(optimizer).explain(optimizer)
    thread.join()
    assert optimizer.state[param]["step"] == 10


class Number:
    """A learning rate that runs something when it is read."""

    def __init__(self, action: Any) -> None:
        self.action = action

    def __float__(self) -> float:
        self.action()
        return 0.1


def test_a_step_within_a_step_is_refused() -> None:
    params = with_grads(3)
    optimizer = fusedopt.Adam(params)
    optimizer.param_groups[0]["lr"] = Number(optimizer.step)
    with pytest.raises(TypeError, match=r"param_groups\[0\]\['lr'\]") as caught:
        optimizer.step()
    assert "within" in str(caught.value.__cause__.__cause__ or caught.value.__cause__)
    assert torch.equal(params[0], torch.ones(3))


def test_reading_an_option_may_drop_parameters() -> None:
    params = with_grads(3, 4, 5)
    last = params[2]
    optimizer = fusedopt.AdamW([{"params": params[:2]}, {"params": params[2:]}])

    def drop() -> None:
        optimizer.param_groups[0]["params"].clear()
        params.clear()

    optimizer.param_groups[1]["lr"] = Number(drop)
    optimizer.step()
    assert optimizer.state[last]["step"] == 1


def test_state_loaded_where_a_foreign_entry_was() -> None:
    a, b = with_grads(3, 4)
    b.grad = None
    optimizer = fusedopt.Adam([a, b])
    optimizer.step()
    optimizer.state["global"] = {}  # type: ignore[index]
    optimizer.step()
    other_params = with_grads(3, 4)
    other = torch.optim.Adam(other_params)
    for _ in range(9):
        other.step()
    optimizer.load_state_dict(other.state_dict())
    b.grad = torch.ones(4)
    optimizer.step()
    assert optimizer.state[b]["step"] == 10


@pytest.mark.parametrize("way", ["override", "pre-hook"])
def test_own_code_around_a_step_sees_unscaled_gradients(way: str) -> None:
    results = []
    for module in (fusedopt, torch.optim):
        seen: list[float] = []

        def look(optimizer: Any, *_: Any, seen: list[float] = seen) -> None:
            seen.append(optimizer.param_groups[0]["params"][0].grad.item())

        class Looking(module.SGD):  # type: ignore[misc,name-defined]
            def step(self, closure: Any = None, look: Any = look) -> Any:
                look(self)
                return super().step(closure)

        param = Parameter(torch.ones(1))
        cls = Looking if way == "override" else module.SGD
        optimizer = cls([param], lr=0.1)
        if way == "pre-hook":
            optimizer.register_step_pre_hook(look)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale((param * 0.5).sum()).backward()
        scaler.step(optimizer)
        results.append((seen, param.item()))
    assert results[0] == results[1]
    assert results[0][0] == [0.5]


@pytest.mark.parametrize("step", [torch.tensor(True), torch.tensor(0j)], ids=str)
def test_a_step_count_that_is_no_number(step: Tensor) -> None:
    params = with_grads(3, 3)
    optimizer = fusedopt.Adam(params)
    optimizer.step()
    optimizer.state[params[1]]["step"] = step
    before = params[0].detach().clone()
    with pytest.raises(RuntimeError, match=r"param_groups\[0\]\['params'\]\[1\]: state\['step'\]"):
        optimizer.step()
    assert optimizer.state[params[0]]["step"] == 1
    assert torch.equal(params[0], before)


def test_inference_state_is_refused_before_anything_changes() -> None:
    params = with_grads(3, 3)
    grad = params[1].grad
    params[1].grad = None
    optimizer = fusedopt.Adam(params)
    optimizer.step()
    params[1].grad = grad
    with torch.inference_mode():
        optimizer.step()
    before = params[0].detach().clone()
    with pytest.raises(RuntimeError, match="inference"):
        optimizer.step()
    assert optimizer.state[params[0]]["step"] == 2
    assert torch.equal(params[0], before)


def test_gradient_that_overlaps_its_parameter_is_refused_as_torch_does() -> None:
    memory = torch.arange(41.0)
    param = Parameter(memory[:40])
    param.grad = memory[1:41]
    with pytest.raises(RuntimeError, match="single memory location|refer to"):
        fusedopt.SGD([param], lr=0.1).step()
    assert torch.equal(memory, torch.arange(41.0))


def test_overlap_by_new_strides_at_the_same_address() -> None:
    memory = torch.zeros(20)
    p, q = Parameter(memory[:5]), Parameter(memory[6:10])
    p.grad, q.grad = torch.ones(5), torch.ones(4)
    optimizer = fusedopt.SGD([p, q], lr=0.1)
    optimizer.step()
    assert [row.kernel for row in fusedopt.explain(optimizer).rows] == ["sgd"]
    p.data = memory.as_strided((5,), (2,))
    optimizer.step()
    assert [row.kernel for row in fusedopt.explain(optimizer).rows] == ["torch"]


def test_first_momentum_buffer_is_the_gradient() -> None:
    ours, theirs = with_grads(3), with_grads(3)
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    optimizers = fusedopt.SGD(ours, **options), torch.optim.SGD(theirs, **options)
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours[0], theirs[0])


def test_sequences_and_truth_values_that_torch_takes() -> None:
    (param,) = with_grads(3)
    optimizer = fusedopt.Adam([param])
    optimizer.param_groups[0].update(params=(param,), betas=torch.tensor([0.9, 0.99]), amsgrad=None)
    optimizer.param_groups = tuple(optimizer.param_groups)  # type: ignore[assignment]
    optimizer.step()
    assert optimizer.state[param]["step"] == 1


def test_overridden_init_group_is_used() -> None:
    calls = []

    class Own(fusedopt.SGD):
        def _init_group(self, *args: Any) -> Any:
            calls.append(args)
            return super()._init_group(*args)

    (param,) = with_grads(3)
    Own([param], lr=0.1).step()
    assert len(calls) == 1
    torch.testing.assert_close(param.detach(), torch.full((3,), 0.9))


def test_submodules_of_torch_optim() -> None:
    from fusedopt.lbfgs import LBFGS
    from fusedopt.optimizer import ParamsT
    from fusedopt.sparse_adam import SparseAdam

    assert SparseAdam is torch.optim.SparseAdam
    assert LBFGS is torch.optim.LBFGS
    assert ParamsT is sys.modules["torch.optim.optimizer"].ParamsT


def test_explain_of_a_lazy_parameter_and_of_no_optimizer() -> None:
    explained = fusedopt.explain(fusedopt.SGD([torch.nn.LazyLinear(3).weight]))
    assert explained.rows[0].elements == 0
    with pytest.raises(TypeError, match="optimizer"):
        fusedopt.explain(5)  # type: ignore[arg-type]
