"""Moves within the caches of all layers against copies made before, and against the CPU path."""

import pytest
import torch
from torch import Tensor

from slipstream.attention.move_rows import move_rows
from slipstream.kernels.launch import IS_INTERPRETED
from slipstream.kernels.move_rows import CacheRowMover, move_cache_rows_reference
from support.one_thread import for_tiny_models  # noqa: F401

DEVICE = "cpu" if IS_INTERPRETED else "cuda"
GQA, LATENT, WIDE = (2, 3, 8), (1, 1, 10), (2, 2, 700)
MOVES = [
    ([9], [2]),
    ([5, 7, 8], [4, 5, 6]),  # a path of a tree is moved up: 5 is read as it was before 7 goes there
    ([4, 5, 6], [5, 6, 7]),
    ([3, 6], [6, 3]),
    ([7, 7], [1, 2]),
    ([2, 3, 9], [2, 3, 4]),  # some stay where they are
    ([2, 3], [2, 3]),
    ([], []),
]


def make(page_size: int, shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    return [torch.randn(12 // page_size, page_size, *shape).to(DEVICE, dtype) for _ in range(3)]


def int64(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=DEVICE)


@pytest.mark.parametrize("shape", [GQA, LATENT, WIDE])
@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize(("source", "target"), MOVES)
def test_all_are_read_before_any_is_written(
    page_size: int, shape: tuple[int, ...], source: list[int], target: list[int]
) -> None:
    caches = make(page_size, shape)
    before, others, more = ([cache.clone() for cache in caches] for _ in range(3))
    CacheRowMover(caches).move(int64(source), int64(target))
    move_rows(others, int64(source), int64(target))
    move_cache_rows_reference(more, int64(source), int64(target))
    origins = {**{row: row for row in range(12)}, **dict(zip(target, source, strict=True))}
    for cache, old, other, another in zip(caches, before, others, more, strict=True):
        for row, origin in origins.items():
            assert torch.equal(cache.flatten(0, 1)[row], old.flatten(0, 1)[origin])
        assert torch.equal(cache, other) and torch.equal(cache, another)


def test_a_mover_serves_step_after_step() -> None:
    caches = make(4, GQA, torch.float32)
    others = [cache.clone() for cache in caches]
    mover = CacheRowMover(caches)
    generator = torch.Generator().manual_seed(0)
    for count in (1, 5, 12, 0, 3):
        source, target = (torch.randperm(12, generator=generator)[:count].to(DEVICE) for _ in range(2))
        mover.move(source, target)
        move_rows(others, source, target)
    assert all(torch.equal(cache, other) for cache, other in zip(caches, others, strict=True))


def test_padding_that_goes_to_the_sink_spoils_nothing() -> None:
    caches = make(4, GQA)
    before = [cache.clone() for cache in caches]
    CacheRowMover(caches).move(int64([9, 0, 0, 8]), int64([5, 0, 0, 0]))
    for cache, old in zip(caches, before, strict=True):
        kept = [row for row in range(1, 12) if row != 5]
        assert torch.equal(cache.flatten(0, 1)[kept], old.flatten(0, 1)[kept])
        assert torch.equal(cache.flatten(0, 1)[5], old.flatten(0, 1)[9])


def test_caches_of_two_kinds() -> None:
    with pytest.raises(AssertionError, match="make a mover for each kind"):
        CacheRowMover([*make(4, GQA), *make(4, LATENT)])
