"""The sets of parameters that the benchmarks step: shapes of well-known networks, and extremes."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import Parameter

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """The shapes of one network's parameters.

    Attributes:
        name: What `--workload` takes and the tables print.
        title: What it is, in words.
        shapes: One per parameter tensor.
        channels_last: Whether 4-dimensional tensors lie in memory in the order NHWC.
    """

    name: str
    title: str
    shapes: tuple[Shape, ...]
    channels_last: bool = False

    @property
    def elements(self) -> int:
        """How many elements all its tensors have together."""
        return sum(math.prod(shape) for shape in self.shapes)

    def parameters(self, dtype: torch.dtype, device: str, seed: int = 0) -> list[Parameter]:
        """Returns parameters with gradients, which depend on the seed only.

        Parameters are standard normal. Gradients are between 0.5 and 1.5 in size, of either sign,
        so that no square of one underflows, not even in float16: no path is slowed down (or sped
        up) by zeros, subnormals or NaNs.
        """
        generator = torch.Generator().manual_seed(seed)
        made = []
        for shape in self.shapes:
            param = Parameter(self._lay_out(torch.randn(shape, generator=generator), dtype, device))
            sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
            size = torch.rand(shape, generator=generator) + 0.5
            param.grad = self._lay_out(sign * size, dtype, device)
            made.append(param)
        return made

    def _lay_out(self, values: Tensor, dtype: torch.dtype, device: str) -> Tensor:
        strided = self.channels_last and values.dim() == 4
        layout = torch.channels_last if strided else torch.contiguous_format
        return values.to(dtype).to(device).contiguous(memory_format=layout)


def _resnet50() -> Iterable[Shape]:
    """He et al., Deep Residual Learning for Image Recognition, 2015, as torchvision has it."""
    yield from [(64, 3, 7, 7), (64,), (64,)]
    width_in = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            convolutions = [(width, width_in, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                convolutions.append((4 * width, width_in, 1, 1))
            for shape in convolutions:
                yield from [shape, shape[:1], shape[:1]]
            width_in = 4 * width
    yield from [(1000, 2048), (1000,)]


def _gpt2() -> Iterable[Shape]:
    """Radford et al., 2019: the smallest GPT-2, 124 M parameters; the head shares its weights."""
    width = 768
    yield from [(50257, width), (1024, width)]
    for _ in range(12):
        yield from [(width,), (width,)]
        yield from [(width, 3 * width), (3 * width,), (width, width), (width,)]
        yield from [(width,), (width,)]
        yield from [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    yield from [(width,), (width,)]


def _vit_b16() -> Iterable[Shape]:
    """Dosovitskiy et al., An Image is Worth 16x16 Words, 2020, for 1000 classes at 224 x 224."""
    width = 768
    yield from [(1, 1, width), (1, 197, width), (width, 3, 16, 16), (width,)]
    for _ in range(12):
        yield from [(width,), (width,)]
        yield from [(3 * width, width), (3 * width,), (width, width), (width,)]
        yield from [(width,), (width,)]
        yield from [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    yield from [(width,), (width,), (1000, width), (1000,)]


_ALL = (
    Workload("16m", "one tensor of 16 M", ((1 << 24,),)),
    Workload("resnet50", "ResNet-50, 161 tensors", tuple(_resnet50())),
    Workload("resnet50-nhwc", "ResNet-50, channels_last", tuple(_resnet50()), channels_last=True),
    Workload("gpt2", "GPT-2 124M, 148 tensors", tuple(_gpt2())),
    Workload("vit-b16", "ViT-B/16, 152 tensors", tuple(_vit_b16())),
    Workload("1000x64", "1000 tensors of 64", ((64,),) * 1000),
    Workload("10000x16", "10,000 tensors of 16", ((16,),) * 10_000),
    Workload("1", "one tensor of 1", ((1,),)),
)
WORKLOADS = {workload.name: workload for workload in _ALL}


def from_model(spec: str) -> Workload:
    """Reads the shapes of a network's parameters.

    Args:
        spec: `package.module:factory`; what the factory returns is a module, or parameters. The
            current folder is searched too.

    Raises:
        ValueError: If there is no such factory, or it fails, or it returns something else.
    """
    module_name, _, path = spec.partition(":")
    if not module_name or not path:
        raise ValueError(f"--model {spec}: write package.module:factory")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        factory: Callable[[], object] = importlib.import_module(module_name)  # type: ignore
        for part in path.split("."):
            factory = getattr(factory, part)
        made = factory()
    except Exception as error:
        raise ValueError(f"--model {spec}: {type(error).__name__}: {error}") from error
    given = made.parameters() if isinstance(made, nn.Module) else made
    params = list(given) if isinstance(given, Iterable) else []
    if not params or not all(isinstance(param, Tensor) for param in params):
        raise ValueError(f"--model {spec}: returned neither a module with parameters nor tensors")
    shapes = tuple(tuple(param.shape) for param in params if param.requires_grad)
    if not shapes:
        raise ValueError(f"--model {spec}: none of its parameters requires a gradient")
    return Workload(spec, f"{path}, {len(shapes)} tensors", shapes)
