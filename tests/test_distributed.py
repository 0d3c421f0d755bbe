"""More than one process: DDP, FSDP2, ZeRO, tensor parallelism, distributed checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import rank_averages
import rank_checks as checks
import rank_functional
import rank_norms
import rank_offload
from ranks import Ranks, groups

Get = Callable[[int], Ranks]


@pytest.fixture(scope="module")
def ranks() -> Iterator[Get]:
    with groups() as get:
        yield get


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(
    "check",
    [
        checks.ddp_equals_one_process,
        checks.fsdp_equals_ddp,
        checks.zero_equals_ddp,
        checks.tensor_parallel_equals_one_process,
        checks.noise_is_the_wholes,
        checks.partial_gradients_are_torchs,
        checks.overflow_on_one_rank_skips_all,
        checks.state_dicts,
        *rank_norms.ALL,
        *rank_averages.ALL,
        *rank_functional.ALL,
    ],
    ids=lambda check: check.__name__,
)
def test_on_ranks(check: Callable[[], None], world: int, ranks: Get) -> None:
    ranks(world).run(check)


@pytest.mark.parametrize("check", rank_offload.ALL, ids=lambda check: check.__name__)
def test_pieces_on_the_cpu(check: Callable[[], None], ranks: Get) -> None:
    ranks(2).run(check)


def test_their_checkpoints_move_both_ways(ranks: Get, tmp_path: Path) -> None:
    ranks(2).run(rank_offload.checkpoints_move_both_ways, tmp_path)


def test_two_dimensions(ranks: Get) -> None:
    ranks(4).run(checks.two_dimensions_equal_ddp)


def test_a_checkpoint_is_loaded_on_another_number_of_ranks(ranks: Get, tmp_path: Path) -> None:
    ranks(2).run(checks.save, tmp_path)
    ranks(4).run(checks.load, tmp_path)
    ranks(1).run(checks.load, tmp_path)
    ranks(2).run(checks.save_rounded, tmp_path)
    ranks(4).run(checks.load_rounded, tmp_path)
    ranks(1).run(checks.load_rounded, tmp_path)
