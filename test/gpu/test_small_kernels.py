"""The small kernels in bf16 at real sizes: against fp64 with torch's own op as the measure of error, and in graphs."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from slipstream.attention.base import Rotation
from slipstream.attention.move_rows import move_rows
from slipstream.attention.paging import locate
from slipstream.kernels.activation import silu_and_mul, silu_and_mul_reference
from slipstream.kernels.embedding import (
    embed_and_concat,
    embed_and_concat_reference,
    embed_rows,
    embed_rows_reference,
)
from slipstream.kernels.move_rows import CacheRowMover
from slipstream.kernels.norm import add_rms_norm, add_rms_norm_reference
from slipstream.kernels.rotary_tables import rotary_tables, rotary_tables_reference
from slipstream.kernels.rotate_and_store import rotate_and_store, rotate_and_store_reference
from slipstream.kernels.rows import chunk_rows, decode_rows, decode_rows_reference
from slipstream.layers.rope import inverse_frequencies

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
ROWS = (1, 7, 8192)
SIZES = (4096, 5120, 12288)
EPS = 1e-5
FAR = 3_000_000_000  # beyond what 32 bits count


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator(CUDA).manual_seed(seed)
    return torch.randn(shape, device=CUDA, generator=generator, dtype=torch.float32).to(dtype)


def integers(low: int, high: int, count: int, seed: int = 0) -> Tensor:
    return torch.randint(low, high, (count,), device=CUDA, generator=torch.Generator(CUDA).manual_seed(seed))


def run_twice(function: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
    """What `function` gives, which must be the same bits when it is replayed from a CUDA graph."""
    outputs = [output.clone() for output in function()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = function()
    for output in captured:
        output.zero_()
    graph.replay()
    assert all(torch.equal(output, again) for output, again in zip(outputs, captured, strict=True))
    return outputs


def assert_as_exact_as_torch(ours: Tensor, torchs: Tensor, exact: Tensor) -> None:
    """The largest and the mean error are at most twice those of torch's own op."""
    errors, others = ((out.double() - exact).abs() for out in (ours, torchs))
    assert errors.max() <= 2 * others.max()
    assert errors.mean() <= 2 * others.mean()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", ROWS)
def test_add_rms_norm(rows: int, size: int) -> None:
    delta, residual, weight = random(rows, size), random(rows, size, seed=1), random(size, seed=2)
    h, out = residual + delta, residual.clone()
    normed, updated = run_twice(lambda: add_rms_norm(delta, out.copy_(residual), weight.float(), EPS))
    assert torch.equal(updated, h)
    wide = h.double()
    exact = wide * (wide.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()
    assert_as_exact_as_torch(normed, F.rms_norm(h, (size,), weight, EPS), exact)
    assert_as_exact_as_torch(normed, add_rms_norm_reference(None, h, weight.float(), EPS)[0], exact)
    (plain,) = run_twice(lambda: add_rms_norm(None, h, weight.float(), EPS)[:1])
    assert torch.equal(plain, normed)
    last, _ = add_rms_norm(None, h[-1:], weight.float(), EPS)
    assert torch.equal(last, normed[-1:])


@pytest.mark.parametrize("size", [14336, 32768, 28672, 1000])
@pytest.mark.parametrize("rows", ROWS)
def test_silu_and_mul(rows: int, size: int) -> None:
    gate_up = 2 * random(rows, 2 * size)
    (out,) = run_twice(lambda: [silu_and_mul(gate_up)])
    gate, up = gate_up.double().chunk(2, -1)
    assert_as_exact_as_torch(out, silu_and_mul_reference(gate_up), gate.sigmoid().mul_(gate).mul_(up))
    assert torch.equal(silu_and_mul(gate_up[-1:]), out[-1:])  # though small batches take other blocks


def test_silu_at_the_ends() -> None:
    gate_up = torch.tensor([[1e30, -1e30, -88.5, torch.inf, torch.nan] + 5 * [1.0]], device=CUDA, dtype=torch.bfloat16)
    torch.testing.assert_close(
        silu_and_mul(gate_up), silu_and_mul_reference(gate_up), equal_nan=True, rtol=0.01, atol=1e-35
    )


def make_rotation(positions: Tensor, size: int, scaled: bool) -> Rotation:
    half = inverse_frequencies(size, {"rope_type": "default", "rope_theta": 1e6}).float().to(CUDA)
    scale = 1 + torch.rand(len(positions), 1, 1, device=CUDA) if scaled else None
    return Rotation(*rotary_tables(positions, torch.cat((-half, half)), 1.0), scale)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "size"),
    [
        *((rows, 32, 8, 128) for rows in ROWS),
        (8192, 96, 8, 128),
        *((rows, 8, 2, size) for rows in (7, 300) for size in (64, 80, 96, 256)),
    ],
)
def test_rotate_and_store(rows: int, heads: int, kv_heads: int, size: int, scaled: bool) -> None:
    qkv, rotation = random(rows, heads + 2 * kv_heads, size), make_rotation(integers(0, 10**6, rows), size, scaled)
    cache, expected = (torch.zeros(rows // 16 + 2, 16, 2, kv_heads, size, device=CUDA).bfloat16() for _ in range(2))
    kv_rows = torch.randperm(16 * len(cache), device=CUDA)[:rows]
    q, written = run_twice(lambda: (rotate_and_store(qkv, rotation, cache, kv_rows, heads), cache))
    keys, values = written.flatten(0, 1)[kv_rows].unbind(1)
    turned = turn_with_fma(qkv[:, : heads + kv_heads], rotation)
    expected_q = turned[:, :heads]
    if rotation.query_scale is not None:
        expected_q = (expected_q * rotation.query_scale).bfloat16()
    assert torch.equal(q, expected_q)
    assert torch.equal(keys, turned[:, heads:])
    assert torch.equal(values, qkv[:, heads + kv_heads :])
    assert written.count_nonzero() == keys.count_nonzero() + values.count_nonzero()
    by_torch = rotate_and_store_reference(qkv, rotation, expected, kv_rows, heads)
    torch.testing.assert_close(written, expected, rtol=2**-7, atol=1e-5)
    wide = qkv[:, :heads].double()
    exact = wide * rotation.cos.double() + wide.roll(size // 2, -1) * rotation.sin.double()
    if rotation.query_scale is not None:
        exact *= rotation.query_scale.double()
    assert_as_exact_as_torch(q, by_torch, exact)


def turn_with_fma(x: Tensor, rotation: Rotation) -> Tensor:
    """x * cos rounded to fp32, partner * sin added to it with one rounding: fp64 holds that product exactly.

    How often torch's addcmul rounds depends on its version.
    """
    wide = x.float()
    products = wide.roll(x.shape[-1] // 2, -1).double() * rotation.sin.double()
    return (products + wide * rotation.cos).float().to(x.dtype)


def test_rotate_and_store_far_into_the_cache() -> None:
    cache = torch.zeros(FAR // (16 * 2 * 8 * 128) + 1, 16, 2, 8, 128, device=CUDA, dtype=torch.bfloat16)
    kv_rows = torch.tensor([16 * len(cache) - 1, 3], device=CUDA)
    qkv = random(2, 48, 128)
    rotate_and_store(qkv, make_rotation(torch.tensor([5, 6], device=CUDA), 128, False), cache, kv_rows, 32)
    assert torch.equal(cache[-1, -1, 1], qkv[0, 40:])
    assert torch.equal(cache[0, 3, 1], qkv[1, 40:])
    assert not cache[0, 4:].any() and not cache[1:-1].any() and not cache[-1, :-1].any()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("size", [64, 96, 128])
def test_rotary_tables(rows: int, size: int) -> None:
    positions = integers(0, 10**6, rows)
    positions[0] = 10**6
    half = inverse_frequencies(size, {"rope_type": "default", "rope_theta": 1e6}).float().to(CUDA)
    frequencies = torch.cat((-half, half))
    tables = run_twice(lambda: rotary_tables(positions, frequencies, 1.2))
    angles = (positions.float().view(-1, 1, 1) * frequencies).double()
    others = rotary_tables_reference(positions, frequencies, 1.2)
    for table, other, exact in zip(tables, others, (angles.cos() * 1.2, angles.sin() * 1.2), strict=True):
        torch.testing.assert_close(table, other, rtol=0, atol=1e-6)
        assert_as_exact_as_torch(table, other, exact)


@pytest.mark.parametrize(("batch", "rows_per_slot"), [(1, 1), (1, 4), (64, 4), (256, 1)])
def test_decode_rows(batch: int, rows_per_slot: int) -> None:
    tables = integers(1, 5000, (batch + 1) * 40).int().view(-1, 40)
    committed_len = integers(0, 40 * 16 + 2, batch + 1)
    slots = torch.randperm(batch + 1, device=CUDA)[:batch]
    buffers = [torch.zeros(batch * rows_per_slot, dtype=torch.int64, device=CUDA) for _ in range(2)]

    def fill() -> list[Tensor]:
        decode_rows(slots, committed_len, tables, rows_per_slot, 16, *buffers)
        return buffers

    expected = decode_rows_reference(slots, committed_len, tables, rows_per_slot, 16)
    assert all(torch.equal(*pair) for pair in zip(run_twice(fill), expected, strict=True))


@pytest.mark.parametrize("rows", ROWS)
def test_chunk_rows(rows: int) -> None:
    tables = integers(1, 5000, 9 * 40).int().view(9, 40)
    row_slots, positions = integers(0, 9, rows), integers(0, 640, rows, seed=1)
    (kv_rows,) = run_twice(lambda: [chunk_rows(row_slots, positions, tables, 16)])
    assert torch.equal(kv_rows, locate(tables, row_slots, positions, 16))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", ROWS)
def test_embedding(rows: int, size: int) -> None:
    table, token_ids, hidden = random(32768, size), integers(0, 32768, rows), random(rows, size, seed=1)
    alone, both = run_twice(lambda: (embed_rows(table, token_ids), embed_and_concat(table, token_ids, hidden)))
    assert torch.equal(alone, embed_rows_reference(table, token_ids))
    assert torch.equal(both, embed_and_concat_reference(table, token_ids, hidden))


@pytest.mark.parametrize("count", [1, 20, 256])
def test_move_cache_rows(count: int) -> None:
    contents = [random(64, 16, 2, 8, 128, seed=layer) for layer in range(32)]
    caches, others = ([cache.clone() for cache in contents] for _ in range(2))
    source, target = (torch.randperm(1024, device=CUDA)[:count] for _ in range(2))
    target[: count // 2] = source[: count // 2].sort().values  # some stay, some change places
    target, kept = unique(target)
    source = source[kept].contiguous()
    mover = CacheRowMover(caches)

    def move() -> list[Tensor]:
        for cache, content in zip(caches, contents, strict=True):
            cache.copy_(content)
        mover.move(source, target)
        return caches

    run_twice(move)
    move_rows(others, source, target)
    assert all(torch.equal(cache, other) for cache, other in zip(caches, others, strict=True))


def unique(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values of `rows`, and where each stood."""
    distinct, inverse = rows.unique(return_inverse=True)
    where = torch.empty_like(distinct).scatter_(0, inverse, torch.arange(len(rows), device=CUDA))
    return distinct, where


def test_move_far_within_the_cache() -> None:
    cache = torch.zeros(2 * FAR // (16 * 2 * 8 * 128) + 1, 16, 2, 8, 128, device=CUDA, dtype=torch.bfloat16)
    cache[0, 3] = random(2, 8, 128)
    last = 16 * len(cache) - 1
    CacheRowMover([cache]).move(torch.tensor([3, last], device=CUDA), torch.tensor([last, 3], device=CUDA))
    assert torch.equal(cache[-1, -1], random(2, 8, 128))
    assert not cache[0, 3].any()


def test_each_waits_for_the_one_before() -> None:
    """A long chain in a graph, where programs of one kernel start while the one before still runs."""
    rows, heads, kv_heads, size = 16, 32, 8, 128
    width = (heads + 2 * kv_heads) * size
    table, weight, start = random(1000, width), random(width, seed=1).float(), integers(0, 1000, rows)
    frequencies = torch.linspace(-1, 1, size, device=CUDA)
    page_tables = torch.arange(1, 9, dtype=torch.int32, device=CUDA).view(1, 8)
    cache = torch.zeros(10, 16, 2, kv_heads, size, dtype=torch.bfloat16, device=CUDA)
    slots = torch.zeros(rows, dtype=torch.int64, device=CUDA)

    def chain(after_each: Callable[[], None]) -> tuple[Tensor, Tensor]:
        residual, delta, positions = embed_rows(table, start), None, start % 128
        for _ in range(40):
            after_each()
            kv_rows = chunk_rows(slots, torch.arange(rows, device=CUDA), page_tables, 16)
            after_each()
            rotation = Rotation(*rotary_tables(positions, frequencies, 1.0), None)
            after_each()
            normed, residual = add_rms_norm(delta, residual, weight, EPS)
            after_each()
            q = rotate_and_store(normed.view(rows, -1, size), rotation, cache, kv_rows, heads)
            after_each()
            both = torch.cat((q.flatten(1), cache[1].flatten(1)), -1)
            after_each()
            half = silu_and_mul(both)
            after_each()
            delta = torch.cat((half, half), -1)
        return delta, residual

    expected = chain(torch.cuda.synchronize)
    for _ in range(3):
        for out, other in zip(run_twice(lambda: chain(lambda: None)), expected, strict=True):
            assert torch.equal(out, other)
