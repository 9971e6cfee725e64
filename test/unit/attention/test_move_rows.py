"""Moves within the cache against a copy made before."""

import pytest
import torch

from slipstream.attention.move_rows import move_rows

GQA, LATENT = (2, 3, 8), (1, 1, 10)


@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ([9], [2]),
        ([5, 7, 8], [4, 5, 6]),  # a path of a tree is moved up: 5 is read as it was before 7 goes there
        ([4, 5, 6], [5, 6, 7]),
        ([3, 6], [6, 3]),
        ([7, 7], [1, 2]),
        ([2, 3], [2, 3]),
        ([], []),
    ],
)
def test_all_are_read_before_any_is_written(page_size: int, source: list[int], target: list[int]) -> None:
    caches = [torch.randn(12 // page_size, page_size, *shape).to(torch.bfloat16) for shape in (GQA, LATENT, GQA)]
    before = [cache.clone().flatten(0, 1) for cache in caches]
    move_rows(caches, torch.tensor(source, dtype=torch.int64), torch.tensor(target, dtype=torch.int64))
    origins = {**{row: row for row in range(12)}, **dict(zip(target, source, strict=True))}
    for cache, old in zip(caches, before, strict=True):
        for row, origin in origins.items():
            assert torch.equal(cache.flatten(0, 1)[row], old[origin])
