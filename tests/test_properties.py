"""Random configurations, shapes and sequences of events: ours and torch's end in the same place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from cases import LAYOUTS, NAMES, SCALARS, class_of, takes
from helpers import (
    all_params,
    assert_identical,
    assert_same,
    contents,
    random,
    torchs_adagrad_makes_state_late,
    undo_rounding,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt

PROFILE = settings(derandomize=True, database=None, deadline=None, max_examples=120)

small = st.sampled_from([0.0, 1e-3, 0.1, 0.5])
booleans = st.booleans()
decay = st.sampled_from([0.5, 0.9, 0.99])
eps = st.sampled_from([1e-10, 1e-8, 1e-3])
rates = st.sampled_from([0.0, 1e-3, 0.05, 0.3])

OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "SGD": {"momentum": st.sampled_from([0.0, 0.9]), "dampening": small},
    "Adagrad": {"lr_decay": small, "initial_accumulator_value": small, "eps": eps},
    "RMSprop": {"alpha": decay, "eps": eps, "momentum": small, "centered": booleans},
    "Adadelta": {"rho": decay, "eps": st.sampled_from([1e-6, 1e-2])},
    "Adam": {
        "betas": st.tuples(decay, decay),
        "eps": eps,
        "amsgrad": booleans,
        "decoupled_weight_decay": booleans,
    },
    "AdamW": {"betas": st.tuples(decay, decay), "eps": eps, "amsgrad": booleans},
    "Adamax": {"betas": st.tuples(decay, decay), "eps": eps},
    "RAdam": {
        "betas": st.tuples(decay, decay),
        "eps": eps,
        "decoupled_weight_decay": booleans,
    },
    "NAdam": {
        "betas": st.tuples(decay, decay),
        "eps": eps,
        "momentum_decay": small,
        "decoupled_weight_decay": booleans,
    },
    "ASGD": {"lambd": small, "alpha": small, "t0": st.sampled_from([1.0, 2.5, 1e6])},
    "Lion": {"betas": st.tuples(decay, decay)},
    "Rprop": {
        "etas": st.tuples(st.sampled_from([0.3, 0.5]), st.sampled_from([1.2, 2.0])),
        "step_sizes": st.sampled_from([(1e-6, 50.0), (0.01, 0.02)]),
    },
}
COMMON = {"lr": rates, "weight_decay": small, "maximize": booleans}
shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)


@st.composite
def configurations(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A class and its options, of which any may be left at the default."""
    name = draw(st.sampled_from(NAMES))
    common = {key: value for key, value in COMMON.items() if takes(fusedopt, name, key)}
    options = {**common, **OPTIONS[name]}
    chosen = draw(st.sets(st.sampled_from(sorted(options))))
    kwargs = {key: draw(options[key]) for key in sorted(chosen)}
    nesterov = takes(fusedopt, name, "nesterov")
    if nesterov and kwargs.get("momentum") and not kwargs.get("dampening"):
        kwargs["nesterov"] = draw(booleans)
    return name, kwargs


class Pair:
    """Our optimizer and torch's, to which the same things happen."""

    def __init__(
        self, name: str, kwargs: dict[str, Any], shapes: list[tuple[int, ...]], seed: int
    ) -> None:
        self.name, self.kwargs, self.seed = name, kwargs, seed
        self.both = [self.make(m, self.params(shapes)) for m in (fusedopt, torch.optim)]

    def make(self, module: Any, groups: Any) -> Optimizer:
        return class_of(module, self.name)(groups, **self.kwargs)

    def params(self, shapes: list[tuple[int, ...]]) -> list[Parameter]:
        return [Parameter(random(s, self.seed + i)) for i, s in enumerate(shapes)]

    def each(self, event: Callable[[Optimizer], None]) -> None:
        for optimizer in self.both:
            event(optimizer)

    def swap(self) -> None:
        """Each takes over the other's checkpoint and parameters."""
        dicts = [copy.deepcopy(o.state_dict()) for o in self.both]
        values = [[p.detach().clone() for p in all_params(o)] for o in self.both]
        for i, optimizer in enumerate(self.both):
            optimizer.load_state_dict(dicts[1 - i])
            undo_rounding(optimizer)
            for p, value in zip(all_params(optimizer), values[1 - i], strict=True):
                p.data = value

    def check(self) -> None:
        assert_same(*self.both, rtol=1e-9, atol=1e-10)


EVENTS = (
    "step", "step_some", "swap", "new_group", "lr", "tensor_lr", "option", "zero_grad",
    "zero_grad_in_place", "freeze", "data", "drop_state", "edit_state", "step_count", "copy",
    "reverse",
)  # fmt: skip


def happen(pair: Pair, event: str, number: int) -> None:
    """One event, to both optimizers."""

    def step(o: Optimizer, some: bool = False) -> None:
        for i, p in enumerate(all_params(o)):
            if not p.requires_grad or (some and (i + number) % 2):
                p.grad = None
            else:
                p.grad = random(p.shape, 977 * number + i)
        o.step()

    def set_data(o: Optimizer) -> None:
        params = all_params(o)
        p = params[number % len(params)]
        p.data = random(p.shape[::-1], number).permute(tuple(reversed(range(p.dim()))))

    def edit_state(o: Optimizer) -> None:
        for p in all_params(o):
            for key, value in o.state.get(p, {}).items():
                if key not in SCALARS:
                    o.state[p][key] = value.clone().mul_(0.75)

    def step_count(o: Optimizer) -> None:
        for p in all_params(o)[::2]:
            if "step" in o.state.get(p, {}):
                o.state[p]["step"].add_(number % 5)

    def drop_state(o: Optimizer) -> None:
        o.state.pop(all_params(o)[0], None)

    def freeze(o: Optimizer) -> None:
        for i, p in enumerate(all_params(o)):
            p.requires_grad_((i + number) % 3 != 0)

    def option(o: Optimizer) -> None:
        o.param_groups[-1]["weight_decay"] = 0.05 * (number % 3)
        o.param_groups[-1]["maximize"] = number % 2 == 0

    def new_group(o: Optimizer) -> None:
        params = [Parameter(random((number % 7,), number)), Parameter(random((2, 3), number))]
        o.add_param_group({"params": params, "lr": 0.01 * (number % 4)})

    def lr(o: Optimizer, tensor: bool = False) -> None:
        value = 0.02 * (number % 5)
        o.param_groups[0]["lr"] = torch.tensor(value, dtype=torch.float64) if tensor else value

    simple: dict[str, Callable[[Optimizer], Any]] = {
        "step": step,
        "step_some": lambda o: step(o, some=True),
        "new_group": new_group,
        "lr": lr,
        "tensor_lr": lambda o: lr(o, tensor=True),
        "option": option,
        "zero_grad": lambda o: o.zero_grad(),
        "zero_grad_in_place": lambda o: (o.zero_grad(set_to_none=False), o.step()),
        "freeze": freeze,
        "data": set_data,
        "drop_state": drop_state,
        "edit_state": edit_state,
        "step_count": step_count,
        "reverse": lambda o: o.param_groups[0]["params"].reverse(),
    }
    if event == "swap":
        pair.swap()
    elif event == "copy":
        pair.both = [copy.deepcopy(o) for o in pair.both]
    else:
        pair.each(simple[event])


@PROFILE
@given(
    configurations(),
    st.lists(shapes, min_size=1, max_size=4),
    st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 50)), min_size=1, max_size=12),
)
def test_any_sequence_of_events(
    configuration: tuple[str, dict[str, Any]],
    shapes: list[tuple[int, ...]],
    events: list[tuple[str, int]],
) -> None:
    pair = Pair(*configuration, shapes=shapes, seed=3)
    happen(pair, "step", 1)
    if configuration[0] == "Adagrad" and not torchs_adagrad_makes_state_late():
        events = [each for each in events if each[0] not in ("new_group", "drop_state")]
    for event, number in events:
        happen(pair, event, number)
        pair.check()
    happen(pair, "step", 2)
    pair.check()


@PROFILE
@given(
    configurations(),
    st.lists(shapes, min_size=1, max_size=5),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.lists(st.integers(0, 4), min_size=5, max_size=5),
)
def test_any_split_into_groups(
    configuration: tuple[str, dict[str, Any]],
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype,
    split: list[int],
) -> None:
    """Bit for bit, and so for any mixture of dtypes beside it."""
    name, kwargs = configuration
    results = []
    for grouped in (False, True):
        params = [Parameter(random(s, i, dtype)) for i, s in enumerate(shapes)]
        other = Parameter(random((3,), 9, torch.float32))
        groups = [{"params": params}]
        if grouped:
            lists = [[p for p, g in zip(params, split, strict=False) if g == k] for k in range(5)]
            groups = [{"params": ps} for ps in [*lists, [other]] if ps]
            other.grad = torch.ones(3)
        optimizer = getattr(fusedopt, name)(groups, **kwargs)
        for t in range(3):
            for i, p in enumerate(params):
                p.grad = random(p.shape, 10 * t + i, dtype)
            optimizer.step()
        results.append([[p.detach(), dict(optimizer.state.get(p, {}))] for p in params])
    assert_identical(results[1], results[0])


@PROFILE
@given(
    configurations(),
    st.lists(st.tuples(st.sampled_from(LAYOUTS), st.integers(1, 12)), min_size=1, max_size=4),
)
def test_any_layouts_and_sizes(
    configuration: tuple[str, dict[str, Any]], tensors: list[tuple[Any, int]]
) -> None:
    """Each layout at many sizes, together, against contiguous ones."""
    name, kwargs = configuration
    laid_out, plain = [], []
    for i, (layout, size) in enumerate(tensors):
        shape = tuple(size + k if k else size for k in range(len(layout.shape)))
        shape = layout.shape if len(shape) > 4 else shape
        values, grad = random(shape, i), layout.grad(random(shape, i + 50))
        laid_out.append(Parameter(layout.param(values)))
        plain.append(Parameter(values.clone()))
        laid_out[-1].grad = grad
        plain[-1].grad = grad.clone(memory_format=torch.contiguous_format)
    ours, contiguous = (getattr(fusedopt, name)(ps, **kwargs) for ps in (laid_out, plain))
    for _ in range(2):
        ours.step()
        contiguous.step()
    assert_identical(contents(ours), contents(contiguous))
