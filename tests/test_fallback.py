"""What the kernels don't cover is stepped by torch's own code, beside what they do cover."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from cases import CLASS_CASES, MAIN_CASES, Case, case, over, with_torch
from helpers import (
    Make,
    assert_identical,
    assert_unchanged,
    contents,
    kernels,
    make_params,
    random,
    set_grads,
    step,
    twins,
)
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("flags", [{}, {"fused": True}], ids=str)
@over([case("SGD-default"), case("SGD-momentum"), case("Adagrad-default")], "case")
def test_sparse_gradients(case: Case, flags: dict[str, Any]) -> None:
    """An embedding with sparse gradients, between dense parameters of the same group."""

    def scenario(make: Make) -> Optimizer:
        torch.manual_seed(0)
        table = torch.nn.Embedding(9, 4, sparse=True, dtype=torch.float64)
        layers = [torch.nn.Linear(4, 4, dtype=torch.float64) for _ in range(2)]
        params = [*layers[0].parameters(), *table.parameters(), *layers[1].parameters()]
        is_ours = getattr(make, "keywords", {}).get("module") is fusedopt
        optimizer = make(params, **(flags if is_ours else {}))
        for t in range(4):
            optimizer.zero_grad()
            index = torch.tensor([1, 3, 3, t])
            layers[1](layers[0](table(index)).relu()).square().sum().backward()
            assert table.weight.grad.is_sparse
            optimizer.step()
        optimizer.zero_grad()
        for p in params:
            p.grad = None
        return optimizer

    ours, _ = twins(case, scenario)
    set_grads(ours.param_groups[0]["params"], 0)
    if case.label == "default":  # a momentum buffer stays sparse
        assert kernels(ours) == {case.name.lower()}
    weight = ours.param_groups[0]["params"][2]
    weight.grad = weight.grad.to_sparse()
    assert kernels(ours) == {case.name.lower(), "torch"}


@pytest.mark.parametrize("name", ["RMSprop", "Adadelta", "Adam", "AdamW"])
def test_sparse_gradients_refused_as_torch_refuses(name: str) -> None:
    dense, sparse = make_params([(3,), (4,)])
    optimizer = getattr(fusedopt, name)([dense, sparse])
    set_grads([dense, sparse], 0)
    sparse.grad = sparse.grad.to_sparse()
    start = [dense.detach().clone(), sparse.detach().clone()]
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert torch.equal(dense, start[0])
    assert torch.equal(sparse, start[1])
    # torch leaves an empty state for the parameter it stopped at
    assert not any(dict(state) for state in optimizer.state.values())


def test_sparse_with_weight_decay_is_torchs_error() -> None:
    dense, sparse = make_params([(3,), (4,)])
    optimizer = fusedopt.Adagrad([dense, sparse], weight_decay=0.1)
    set_grads([dense, sparse], 0)
    sparse.grad = sparse.grad.to_sparse()
    start = dense.detach().clone()
    with pytest.raises(RuntimeError, match="weight_decay option is not compatible"):
        optimizer.step()
    assert torch.equal(dense, start)


@over(with_torch(CLASS_CASES), "case")
def test_sparse_gradients_refused_before_torch_steps(case: Case) -> None:
    """Or with weight decay, as SGD's and Adagrad's case; before torch steps another group."""
    complex_one = Parameter(torch.complex(random((3,), 0), random((3,), 1)))
    dense, sparse = make_params([(3,), (4,)])
    optimizer = case.make([{"params": [complex_one]}, {"params": [dense, sparse]}])
    set_grads([complex_one, dense, sparse], 0)
    sparse.grad = sparse.grad.to_sparse()
    before = contents(optimizer)
    refused = r"^param_groups\[1\]\['params'\]\[1\]: .* sparse gradients"
    with pytest.raises(RuntimeError, match=refused):
        optimizer.step()
    sparse.grad = before[-2] = sparse.grad.to_dense()
    assert_unchanged(optimizer, before)


@over(with_torch(MAIN_CASES), "case")
def test_complex_parameters(case: Case) -> None:
    def scenario(make: Make) -> Optimizer:
        params = make_params([(4,), (5,), (6,)])
        params[1] = Parameter(torch.complex(random((5,), 1), random((5,), 2)))
        optimizer = make(params)
        for t in range(4):
            set_grads(params, t)
            params[1].grad = torch.complex(random((5,), t + 7), random((5,), t + 8))
            optimizer.step()
        return optimizer

    ours, _ = twins(case, scenario)
    assert kernels(ours) == {case.name.lower(), "torch"}


@over(with_torch(CLASS_CASES), "case")
def test_differentiable(case: Case) -> None:
    """Autograd goes through the step, as through torch's."""
    found = []
    for module in (fusedopt, torch.optim):
        leaf = random((4,), 0).requires_grad_()
        param = leaf.clone()
        optimizer = case.make([param], module, differentiable=True)
        param.grad = (leaf * 2).detach()
        optimizer.step()
        (derivative,) = torch.autograd.grad(param.square().sum(), leaf)
        found.append((param.detach(), derivative))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@over(with_torch(MAIN_CASES), "case")
def test_fused_false_is_torchs_own_code(case: Case) -> None:
    """The same bits as torch's, and none of our kernels."""
    params = [make_params(dtype=torch.float32) for _ in range(2)]
    ours = case.make(params[0], fused=False)
    theirs = case.make(params[1], torch.optim, foreach=None)
    for t in range(3):
        step(ours, t)
        step(theirs, t)
    assert_identical([p.detach() for p in params[0]], [p.detach() for p in params[1]])
    for p, q in zip(*params, strict=True):
        assert_identical(dict(ours.state.get(p, {})), dict(theirs.state.get(q, {})))
    assert kernels(ours) == {"torch"}


def test_fused_false_per_group() -> None:
    a, b = make_params([(3,), (4,)])
    optimizer = fusedopt.Adam([{"params": [a]}, {"params": [b], "fused": False}])
    assert [row.kernel for row in fusedopt.explain(optimizer).rows] == ["adam", "torch"]
    optimizer.param_groups[1]["fused"] = None
    assert kernels(optimizer) == {"adam"}
    optimizer.param_groups[0]["foreach"] = True
    assert kernels(optimizer) == {"adam"}


class Wrapper(torch.Tensor):
    """A tensor without memory of its own, as distributed and quantised tensors are."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> Wrapper:  # noqa: PLW0211
        out = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, requires_grad=requires_grad
        )
        out.inner = inner
        return out

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        def unwrap(x: Any) -> Any:
            return x.inner if isinstance(x, Wrapper) else x

        plain_args, plain_kwargs = torch.utils._pytree.tree_map(unwrap, (args, kwargs or {}))
        out = func(*plain_args, **plain_kwargs)
        if func._schema.name.endswith("_") and isinstance(args[0], Wrapper):
            return args[0]
        return torch.utils._pytree.tree_map_only(Tensor, Wrapper, out)


@over(with_torch(MAIN_CASES), "case")
def test_wrapper_subclass(case: Case) -> None:
    results = []
    for module in (fusedopt, torch.optim):
        plain = make_params([(5,)])[0]
        inner = random((6,), 1)
        wrapped = Parameter(Wrapper(inner))
        optimizer = case.make([plain, wrapped], module)
        for t in range(3):
            plain.grad = random((5,), t)
            wrapped.grad = Wrapper(random((6,), t + 5))
            optimizer.step()
        results.append([plain.detach(), inner])
        if module is fusedopt:
            assert kernels(optimizer) == {"torch"}  # its dispatch is Python code: all is torch's
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


@over(CLASS_CASES, "case")
def test_plain_subclass_runs_on_the_kernels(case: Case) -> None:
    """A subclass without a dispatch of its own is a tensor like any other."""

    class Named(Parameter):
        pass

    def scenario(make: Make) -> Optimizer:
        optimizer = make([Named(random((5,), 0)), torch.nn.Buffer(random((3,), 1))])
        for t in range(3):
            step(optimizer, t)
        return optimizer

    ours, _ = twins(case, scenario)
    assert kernels(ours) == {case.name.lower()}


@over(with_torch(MAIN_CASES), "case")
def test_lazily_negated_gradients(case: Case) -> None:
    """`x.conj().imag` is a view with a bit that says: the memory holds the negated values."""

    def scenario(make: Make) -> Optimizer:
        params = make_params([(5, 7), (3,)])
        optimizer = make(params)
        for t in range(3):
            set_grads(params, t)
            params[0].grad = torch.complex(random((5, 7), t), random((5, 7), t + 9)).conj().imag
            assert params[0].grad.is_neg()
            optimizer.step()
        return optimizer

    twins(case, scenario)


@over(with_torch(MAIN_CASES), "case")
def test_lazily_negated_parameters(case: Case) -> None:
    def scenario(make: Make) -> Optimizer:
        params = [Parameter(torch._neg_view(random((6,), 0))), *make_params([(3,)])]
        assert params[0].is_neg()
        optimizer = make(params)
        for t in range(3):
            step(optimizer, t)
        return optimizer

    twins(case, scenario)


@over(with_torch(CLASS_CASES), "case")
def test_meta_parameters(case: Case) -> None:
    """Another device than the CPU: torch's own step, whatever that device is."""
    params = [Parameter(torch.randn(3)), Parameter(torch.randn(4, device="meta"))]
    optimizer = case.make(params)
    params[0].grad, params[1].grad = torch.ones(3), torch.ones(4, device="meta")
    try:
        case.make(params, torch.optim).step()
    except RuntimeError:  # a number of its state is there too, and torch asks for it
        with pytest.raises(RuntimeError, match="meta"):
            optimizer.step()
        return
    optimizer.step()
    assert kernels(optimizer) == {case.name.lower(), "torch"}
    assert params[0].isfinite().all()


@pytest.mark.parametrize("name", [c.name for c in with_torch(CLASS_CASES)])
def test_integer_parameters_as_torch(name: str) -> None:
    """Whatever torch's loop says about integers, ours says too."""
    outcomes = []
    for module in (torch.optim, fusedopt):
        param = torch.arange(5)
        optimizer = getattr(module, name)([param])
        param.grad = torch.ones_like(param)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                optimizer.step()
            outcomes.append(param.tolist())
        except (RuntimeError, TypeError) as error:
            outcomes.append(type(error))
    assert outcomes[0] == outcomes[1]


def test_a_mixture_of_everything() -> None:
    """All reasons to fall back in one optimizer with ordinary parameters."""
    ordinary = make_params([(33,), (4, 5)])
    shared = random((8,), 3)
    others = [
        Parameter(torch.complex(random((3,), 1), random((3,), 2))),
        Parameter(shared[:5]),
        Parameter(shared[3:]),
    ]
    optimizer = fusedopt.Adagrad([ordinary[0], *others, ordinary[1]], lr=0.1)
    for t in range(3):
        step(optimizer, t)
    rows = fusedopt.explain(optimizer).rows
    assert sum(r.tensors for r in rows) == 5
    assert sum(r.elements for r in rows) == 33 + 20 + 3 + 5 + 5
    assert all(math.isfinite(p.detach().abs().sum().item()) for p in [*ordinary, *others])


@over(with_torch(MAIN_CASES), "case")
def test_a_strided_parameter_without_state_beside_torchs(case: Case) -> None:
    """The first step refuses options before torch changes anything: the table has no state yet."""

    def scenario(make: Make) -> Optimizer:
        first = make_params([(4, 6)])[0]
        first.data = first.data.t()
        second = Parameter(torch.complex(random((5,), 1), random((5,), 2)))
        optimizer = make([first, second])
        for t in range(2):
            first.grad = random((6, 4), t)
            second.grad = torch.complex(random((5,), t + 3), random((5,), t + 5))
            optimizer.step()
        return optimizer

    twins(case, scenario)
