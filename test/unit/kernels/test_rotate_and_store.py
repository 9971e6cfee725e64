"""Rotation against multiplication of complex numbers, and against the layers of the CPU path; what the cache holds."""

import cmath

import pytest
import torch
from torch import Tensor

from slipstream.attention.base import Rotation
from slipstream.kernels.launch import IS_INTERPRETED
from slipstream.kernels.rotate_and_store import FEW_ROWS, rotate_and_store, rotate_and_store_reference
from slipstream.layers.rope import RotaryEmbedding, rotate
from support.one_thread import for_tiny_models  # noqa: F401

DEVICE = "cpu" if IS_INTERPRETED else "cuda"
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
DTYPES = (torch.float32, torch.float16)
PAGE_SIZE = 4
SHAPES = [
    (1, 4, 2, 8),
    (5, 3, 1, 6),
    (2, 6, 2, 80),
    (3, 9, 3, 96),
    (FEW_ROWS + 2, 14, 2, 4),
]  # rows, heads, kv heads, D


def make(
    rows: int, heads: int, kv_heads: int, size: int, dtype: torch.dtype, scaled: bool = False
) -> tuple[Tensor, Rotation, Tensor, Tensor]:
    """(qkv, rotation, cache, kv_rows): random contents, and distinct rows in no order."""
    generator = torch.Generator().manual_seed(size)
    qkv = torch.randn(rows, heads + 2 * kv_heads, size, generator=generator)
    num_pages = rows // PAGE_SIZE + 2
    cache = torch.randn(num_pages, PAGE_SIZE, 2, kv_heads, size, generator=generator)
    kv_rows = torch.randperm(num_pages * PAGE_SIZE, generator=generator)[:rows]
    positions = torch.randint(0, 1000, (rows,), generator=generator)
    tables = RotaryEmbedding(size, PLAIN, 1.2, torch.device("cpu")).at(positions)
    scale = 1 + torch.rand(rows, 1, 1, generator=generator) if scaled else None
    rotation = Rotation(*(table.to(DEVICE) for table in tables), None if scale is None else scale.to(DEVICE))
    return qkv.to(DEVICE, dtype), rotation, cache.to(DEVICE, dtype), kv_rows.to(DEVICE)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_the_cpu_path_does(shape: tuple[int, int, int, int], dtype: torch.dtype, scaled: bool) -> None:
    heads, kv_heads = shape[1:3]
    qkv, rotation, cache, kv_rows = make(*shape, dtype, scaled)
    turned = rotate(qkv[:, : heads + kv_heads], rotation.cos, rotation.sin)
    expected_q = turned[:, :heads]
    if rotation.query_scale is not None:
        expected_q = (expected_q * rotation.query_scale).to(dtype)
    expected_cache = cache.clone()
    for row, target in enumerate(kv_rows.tolist()):
        page, offset = divmod(target, PAGE_SIZE)
        expected_cache[page, offset, 0] = turned[row, heads:]
        expected_cache[page, offset, 1] = qkv[row, heads + kv_heads :]
    before = qkv.clone()
    by_reference = cache.clone()
    q = rotate_and_store(qkv, rotation, cache, kv_rows, heads)
    assert torch.equal(qkv, before)
    torch.testing.assert_close(q, expected_q)
    torch.testing.assert_close(cache, expected_cache)
    assert torch.equal(cache[:, :, 1], expected_cache[:, :, 1])  # values are copied
    assert torch.equal(rotate_and_store_reference(qkv, rotation, by_reference, kv_rows, heads), expected_q)
    assert torch.equal(by_reference, expected_cache)


def test_each_pair_turns_by_its_angle() -> None:
    qkv, _, cache, kv_rows = make(3, 2, 1, 8, torch.float32)
    positions = [0, 5, 63]
    tables = RotaryEmbedding(8, PLAIN, 1.5, torch.device("cpu")).at(torch.tensor(positions))
    q = rotate_and_store(qkv, Rotation(tables[0].to(DEVICE), tables[1].to(DEVICE), None), cache, kv_rows, 2)
    keys = cache.flatten(0, 1)[kv_rows, 0]
    for row, position in enumerate(positions):
        for pair in range(4):
            turn = cmath.rect(1.5, position * 1e4 ** (-2 * pair / 8))
            for head, out in enumerate((q[row, 0], q[row, 1], keys[row, 0])):
                turned = complex(qkv[row, head, pair], qkv[row, head, pair + 4]) * turn
                assert float(out[pair]) == pytest.approx(turned.real, abs=1e-5)
                assert float(out[pair + 4]) == pytest.approx(turned.imag, abs=1e-5)


def test_padding_goes_to_the_sink_and_spoils_nothing() -> None:
    """Rows 1 and 3 pad the batch: both go to row 0, of the sink page."""
    qkv, rotation, cache, _ = make(4, 2, 1, 8, torch.float32)
    alone, expected = cache.clone(), torch.tensor([5, 0, 6, 0], device=DEVICE)
    rotate_and_store(qkv, rotation, cache, expected, 2)
    rotate_and_store(qkv[::2].contiguous(), pick(rotation, [0, 2]), alone, expected[::2].contiguous(), 2)
    assert torch.equal(cache.flatten(0, 1)[1:], alone.flatten(0, 1)[1:])


def pick(rotation: Rotation, rows: list[int]) -> Rotation:
    return Rotation(rotation.cos[rows], rotation.sin[rows], None)


def test_a_row_has_the_same_bits_in_every_batch() -> None:
    rows = FEW_ROWS + 2
    qkv, rotation, cache, kv_rows = make(rows, 14, 2, 4, torch.float16)
    q = rotate_and_store(qkv, rotation, cache, kv_rows, 14)
    for row in range(0, rows, 13):
        other = torch.zeros_like(cache)
        one = slice(row, row + 1)
        assert torch.equal(rotate_and_store(qkv[one], pick(rotation, [row]), other, kv_rows[one], 14), q[one])
        assert torch.equal(other.flatten(0, 1)[kv_rows[one]], cache.flatten(0, 1)[kv_rows[one]])
