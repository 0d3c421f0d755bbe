"""A character GPT of half a million parameters, trained on Python's standard library."""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.optim import Optimizer

VOCABULARY, CONTEXT, WIDTH, LAYERS, HEADS, BATCH = 128, 64, 96, 4, 4, 8
_CHARACTERS = 2_000_000
_HELD_OUT = 100_000
_EVALUATED = 100  # batches


@cache
def text() -> Tensor:
    """ASCII codes of the standard library's modules, in the order of their names."""
    folder = Path(sysconfig.get_path("stdlib"))
    everything = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    ascii_only = bytes(byte for byte in everything[: 2 * _CHARACTERS] if byte < VOCABULARY)
    return torch.frombuffer(bytearray(ascii_only[:_CHARACTERS]), dtype=torch.uint8).long()


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.before_attention(x)).unflatten(-1, (3, HEADS, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(-2))
        return x + self.down(functional.gelu(self.up(self.before_mlp(x))))


class GPT(nn.Module):
    """Radford et al., Language Models are Unsupervised Multitask Learners, 2019, made small."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(_Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, codes: Tensor) -> Tensor:
        """Scores of the next character, for each of (batch, up to CONTEXT) codes."""
        x = self.token(codes) + self.place.weight[: codes.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def _loss(model: GPT, params: Mapping[str, Tensor], codes: Tensor, starts: Tensor) -> Tensor:
    """Computed in float32 from parameters in any dtype, so that only the optimizer differs."""
    batch = codes[starts[:, None] + torch.arange(CONTEXT + 1)]
    wide = {name: param.float() for name, param in params.items()}
    scores = functional_call(model, wide, (batch[:, :-1],))
    return functional.cross_entropy(scores.flatten(0, 1), batch[:, 1:].flatten())


def train(
    make: Callable[[list[nn.Parameter]], Optimizer], dtype: torch.dtype, steps: int, seed: int
) -> float:
    """Trains with a learning rate that falls to 0 as a cosine, and returns the held-out loss."""
    torch.manual_seed(seed)
    model = GPT().to(dtype)
    params = dict(model.named_parameters())
    optimizer = make(list(params.values()))
    rate = optimizer.param_groups[0]["lr"]
    training, held_out = text()[:-_HELD_OUT], text()[-_HELD_OUT:]
    batches = torch.Generator().manual_seed(seed)
    for step in range(steps):
        warm = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * (1 + math.cos(math.pi * step / steps)) / 2
        starts = torch.randint(len(training) - CONTEXT, (BATCH,), generator=batches)
        optimizer.zero_grad()
        _loss(model, params, training, starts).backward()
        optimizer.step()
    starts = torch.arange(_EVALUATED * BATCH) * ((_HELD_OUT - CONTEXT - 1) // (_EVALUATED * BATCH))
    with torch.no_grad():
        losses = [_loss(model, params, held_out, part) for part in starts.split(BATCH)]
    return float(torch.stack(losses).mean())
