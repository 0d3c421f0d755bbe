"""A step that finds all as the last one left it looks less closely: no change may escape it.

So each of these changes comes after steps without one.
"""

from __future__ import annotations

import pytest
import torch
from cases import CLASS_CASES, MAIN_CASES, SCALARS, Case, case, over
from helpers import Make, make_params, random, set_grads, step, twins
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt


def tensors_of(optimizer: Optimizer, param: Tensor) -> list[Tensor]:
    """Parameter, gradient and states of its size."""
    state = optimizer.state.get(param, {})
    states = [v for k, v in state.items() if k not in SCALARS and isinstance(v, Tensor)]
    assert param.grad is not None
    return [param, param.grad, *states]


def change(optimizer: Optimizer, first: Parameter, second: Parameter, how: str) -> None:
    """Changes what belongs to one of two parameters of shape (6, 4), in its place if possible."""
    if how == "transposed":  # all alike, so a kernel still takes them in one pass
        for tensor in tensors_of(optimizer, first):
            tensor.t_()
    elif how == "gradient transposed":
        first.grad = first.grad.t().contiguous().t()
    elif how == "state transposed":
        for tensor in tensors_of(optimizer, first)[2:]:
            tensor.set_(tensor.t().contiguous().t())
    elif how == "narrowed":
        for tensor in tensors_of(optimizer, first):
            tensor.set_(tensor[:3])
    elif how == "every other row":
        for tensor in tensors_of(optimizer, first):
            tensor.set_(tensor[::2])
    elif how == "storage moved":
        for tensor in tensors_of(optimizer, first):
            tensor.untyped_storage().resize_(1 << 20)
    elif how == "swapped":
        first.grad, second.grad = None, None
        torch.utils.swap_tensors(first, second)
        set_grads([first, second], 3)
    elif how == "lazily copied":
        for tensor in tensors_of(optimizer, first)[2:]:
            torch._lazy_clone(tensor)  # from now on both are shared until one is written
    elif how == "without gradient":
        grad, first.grad = first.grad, None
        optimizer.step()
        first.grad = grad


@pytest.mark.parametrize(
    "how",
    [
        "transposed",
        "gradient transposed",
        "state transposed",
        "narrowed",
        "every other row",
        "storage moved",
        "swapped",
        "lazily copied",
        "without gradient",
    ],
)
@over(MAIN_CASES, "case")
def test_a_change_after_equal_steps(case: Case, how: str) -> None:
    def scenario(make: Make) -> Optimizer:
        params = [Parameter(random((6, 4), i)) for i in range(2)]
        optimizer = make(params)
        for t in range(3):
            step(optimizer, t)
        with torch.no_grad():
            change(optimizer, *params, how)
        for _ in range(2):
            optimizer.step()
        return optimizer

    twins(case, scenario)


@over(CLASS_CASES, "case")
def test_new_gradients_at_each_step(case: Case) -> None:
    """As a backward pass makes them: other tensors, elsewhere, or in another layout."""

    def scenario(make: Make) -> Optimizer:
        params = make_params()
        optimizer = make(params)
        kept = []
        for t in range(6):
            for i, p in enumerate(params):
                grad = random(p.shape, 10 * t + i)
                strided = t > 3 and grad.dim() == 2
                p.grad = grad.t().contiguous().t() if strided else grad
                kept.append(p.grad)  # so that none takes another's place
            optimizer.step()
        return optimizer

    twins(case, scenario)


def test_lazily_copied_state_is_not_written_through() -> None:
    params = [Parameter(random((9,), 0))]
    optimizer = fusedopt.Adam(params)
    for t in range(3):
        step(optimizer, t)
    copy = torch._lazy_clone(optimizer.state[params[0]]["exp_avg"])
    before = copy.clone()
    step(optimizer, 3)
    assert torch.equal(copy, before)
    assert not torch.equal(optimizer.state[params[0]]["exp_avg"], before)


def test_a_gradient_that_comes_to_overlap_its_parameter() -> None:
    memory = random((12,), 0)
    param = Parameter(memory[:6])
    param.grad = param.detach()  # element by element the same: allowed, as torch does
    optimizer = fusedopt.SGD([param], lr=0.1)
    for _ in range(3):
        optimizer.step()
    param.grad = memory[1:7]
    before = memory.clone()
    with pytest.raises(RuntimeError, match="single memory location|refer to"):
        optimizer.step()
    assert torch.equal(memory, before)


def test_a_view_as_another_dtype_at_the_same_address() -> None:
    """Every tensor has become one of integers: torch's step, and its result."""
    results = []
    for module in (fusedopt, torch.optim):
        param = Parameter(torch.ones(8))
        param.grad = torch.ones(8)
        optimizer = module.SGD([param], lr=1.0, momentum=0.5)
        for _ in range(3):
            optimizer.step()
        for tensor in tensors_of(optimizer, param):
            tensor.data = tensor.data.view(torch.float64)
        optimizer.step()
        results.append(param.detach())
    assert results[0].dtype == torch.float64
    torch.testing.assert_close(*results)


def test_an_option_changed_while_another_parameter_was_refused() -> None:
    """What was seen of the second parameter before was seen with another kernel in mind."""

    def scenario(make: Make) -> Optimizer:
        params = [Parameter(random((5,), i)) for i in range(2)]
        optimizer = make(params)
        for t, amsgrad in enumerate((True, True, False, False)):
            optimizer.param_groups[0]["amsgrad"] = amsgrad
            step(optimizer, t)
        optimizer.param_groups[0]["amsgrad"] = True
        if type(optimizer).__module__.startswith("fusedopt"):
            right, params[0].grad.data = params[0].grad.data, torch.ones(7)
            with pytest.raises(RuntimeError, match="gradient"):
                optimizer.step()
            params[0].grad.data = right
        optimizer.step()
        return optimizer

    twins(case("AdamW-amsgrad"), scenario)


def test_parameters_moved_between_groups_by_a_step_that_raises() -> None:
    """Each keeps its own state, although the refused step had read the new order already."""

    def scenario(make: Make) -> Optimizer:
        params = [Parameter(random((4,), i)) for i in range(3)]
        optimizer = make([{"params": [p]} for p in params])
        for t in range(3):
            step(optimizer, t)
        groups = optimizer.param_groups
        groups[0]["params"], groups[1]["params"], groups[2]["params"] = (
            [params[1]],
            [params[0]],
            [None],
        )
        if type(optimizer).__module__.startswith("fusedopt"):
            with pytest.raises(TypeError, match="must be a tensor"):
                optimizer.step()
        groups[2]["params"] = [params[2]]
        step(optimizer, 3)
        return optimizer

    twins(case("AdamW-default"), scenario)


def test_state_put_back_after_a_step_with_another() -> None:
    """The other is an object's attributes, of which Python keeps no version."""
    param = Parameter(torch.zeros(3))
    optimizer = fusedopt.Adam([param])
    for t in range(3):
        step(optimizer, t)
    kept, grad = optimizer.state, param.grad
    optimizer.state, param.grad = vars(type("Empty", (), {})()), None
    optimizer.step()
    optimizer.state, param.grad = kept, grad
    optimizer.step()
    assert optimizer.state[param]["step"] == 4


def test_a_lazily_copied_parameter_moves_a_gradient_that_was_read_before() -> None:
    """Gradient and another parameter lie in one storage, which the step copies as it looks."""
    memory = torch.zeros(64)
    memory[:8], memory[32:40] = 4, 1
    params = [Parameter(torch.zeros(8)) for _ in range(2)]
    params[1].data = memory[32:40]
    params[0].grad, params[1].grad = memory[:8], torch.full((8,), 2.0)
    optimizer = fusedopt.SGD(params, lr=0.5)
    optimizer.step()
    copy = torch._lazy_clone(memory)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)
    optimizer.step()
    assert torch.equal(copy[:8], torch.full((8,), 4.0))
    assert torch.equal(params[0].grad, torch.full((8,), 2.0))
