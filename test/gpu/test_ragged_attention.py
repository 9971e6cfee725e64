"""The ragged attention kernel at real sizes: its error beside torch's, and the same bits from a CUDA graph."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from slipstream.attention.base import DeviceRows, Rotation
from slipstream.attention.layer import AttentionLayer
from slipstream.attention.paging import make_layout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PAGE_SIZE = 16
LAYERS = {
    "7b": AttentionLayer(32, 8, 128, scale=128**-0.5),
    "7b, window": AttentionLayer(32, 8, 128, scale=128**-0.5, window=300),
    "12 heads share": AttentionLayer(96, 8, 128, scale=128**-0.5),
    "heads of 64": AttentionLayer(16, 8, 64, scale=0.125),
    "heads of 80": AttentionLayer(8, 8, 80, scale=0.1),
    "heads of 256": AttentionLayer(16, 4, 256, scale=1 / 16),
}
STEPS = {
    "decode": ([0, 1, 639, 2000, 15, 16], [1] * 6, 6),
    "one long request": ([16000], [4], 1),
    "verify": ([600 + request for request in range(64)], [4] * 64, 64),
    "chunks": ([0, 512, 70], [333, 128, 1], 0),
    "mixed": ([5, 900, 0, 256], [4, 2, 100, 64], 2),
}


class Step:
    """Requests on shuffled pages, the sink full of NaN."""

    def __init__(self, layer: AttentionLayer, starts: Sequence[int], num_rows: Sequence[int], dtype: torch.dtype):
        torch.manual_seed(0)
        self.layer, self.starts, self.num_rows = layer, starts, num_rows
        lens = [start + count for start, count in zip(starts, num_rows, strict=True)]
        width = -(-max(lens) // PAGE_SIZE) + 3
        self.tables = (torch.randperm(len(lens) * width) + 1).view(len(lens), width).int().cuda()
        shape = (len(lens) * width + 1, PAGE_SIZE, *layer.cache_shape)
        self.cache = torch.randn(shape, device="cuda", dtype=dtype)
        self.cache[0] = float("nan")
        heads = layer.num_heads + 2 * layer.num_kv_heads
        self.qkv = torch.randn(sum(num_rows), heads, layer.head_dim, device="cuda", dtype=dtype)
        self.parts = self.qkv.split([layer.num_heads, layer.num_kv_heads, layer.num_kv_heads], 1)

    def by_torch(self, dtype: torch.dtype) -> Tensor:
        """Of each request by torch's own attention in `dtype`, after the step's keys were written."""
        rows, outs, begin = self.cache.flatten(0, 1), [], 0
        group = self.layer.num_heads // self.layer.num_kv_heads
        for table, start, count in zip(self.tables, self.starts, self.num_rows, strict=True):
            at = torch.arange(start + count, device="cuda")
            kv = rows[table[at // PAGE_SIZE].long() * PAGE_SIZE + at % PAGE_SIZE].to(dtype)
            own = at[start:, None]
            visible = (at <= own) & (at > own - (self.layer.window or start + count))
            q = self.parts[0][begin : begin + count].to(dtype).transpose(0, 1)[None]
            k, v = (kv[:, which].transpose(0, 1).repeat_interleave(group, 0)[None] for which in (0, 1))
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=self.layer.scale)
            outs.append(out[0].transpose(0, 1).flatten(1))
            begin += count
        return torch.cat(outs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("layer", LAYERS)
def test_as_exact_as_torch(layer: str, step: str, dtype: torch.dtype) -> None:
    """The root mean square of the error, against float64, is at most twice that of torch in the same dtype."""
    from slipstream.attention.triton import TritonAttention

    starts, num_rows, num_decode = STEPS[step]
    case = Step(LAYERS[layer], starts, num_rows, dtype)
    backend = TritonAttention([case.layer], [case.cache])
    backend.plan(make_layout(case.tables, PAGE_SIZE, range(len(starts)), starts, num_rows, num_decode)[0])
    out = backend.run(0, *case.parts)
    exact = case.by_torch(torch.float64)
    own, theirs = ((each.double() - exact).square().mean().sqrt() for each in (out, case.by_torch(dtype)))
    assert float(own) <= 2 * float(theirs)
    largest = float((out.double() - exact).abs().max())
    assert largest < (1e-4 if dtype == torch.float32 else 0.02)


def device_rows(tables: Tensor, num_rows: int) -> DeviceRows:
    """A block of `num_rows` for every slot, and two more for the dummy slot, which comes last."""
    slots = [*range(len(tables) - 1), len(tables) - 1, len(tables) - 1]
    total = len(slots) * num_rows
    sizes = [num_rows] * (len(slots) - 1) + [0]
    starts = range(0, total, num_rows)
    ints = (torch.tensor(list(values), dtype=torch.int32, device="cuda") for values in (slots, starts, sizes))
    positions, kv_rows = (torch.zeros(total, dtype=torch.int64, device="cuda") for _ in range(2))
    return DeviceRows(tables, positions, kv_rows, *ints, num_rows, tables.shape[1] * PAGE_SIZE)


@pytest.mark.parametrize("num_slots", [1, 5, 40])
@pytest.mark.parametrize("fused", [False, True])
def test_a_graph_gives_the_same_bits_at_every_length(num_slots: int, fused: bool) -> None:
    from slipstream.attention.triton import TritonAttention

    layer, rows_each = LAYERS["7b"], 4
    case = Step(layer, [2000] * num_slots, [rows_each] * num_slots, torch.bfloat16)
    tables = torch.cat((case.tables, torch.zeros_like(case.tables[:1])))
    rows = device_rows(tables, rows_each)
    num_rows, used = rows.positions.shape[0], num_slots * rows_each
    qkv = torch.randn(num_rows, *case.qkv.shape[1:], device="cuda", dtype=torch.bfloat16)
    angles = torch.rand(num_rows, 1, 128, device="cuda")
    rotation = Rotation(angles.cos(), angles.sin(), None)
    backend = TritonAttention([layer], [case.cache])
    backend.plan_rows(rows)

    def run() -> Tensor:
        if fused:
            return backend.run_fused(0, qkv, rotation)
        return backend.run(0, *qkv.split([32, 8, 8], 1))

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for seed in range(4):
        starts = torch.randint(1, 2000, (num_slots,), generator=torch.Generator().manual_seed(seed)).tolist()
        layout, positions = make_layout(
            tables, PAGE_SIZE, range(num_slots), starts, [rows_each] * num_slots, num_slots
        )  # fmt: skip
        rows.positions[:used], rows.kv_rows[:used] = positions, layout.kv_rows
        qkv.copy_(torch.randn_like(qkv))
        graph.replay()
        assert torch.equal(captured[:used], run()[:used])
        assert bool((captured[used : used + rows_each] == 0).all()), "the dummy slot has no keys"
        if not fused:
            case.starts, case.parts = starts, qkv[:used].split([32, 8, 8], 1)
            difference = captured[:used].double() - case.by_torch(torch.float64)
            assert float(difference.abs().max()) < 0.02


def test_rows_that_the_kernel_just_before_writes() -> None:
    """Programs of the attention may have started by then, and read no position before it is written."""
    from slipstream.kernels.paged_attention import RowBlocks, paged_attention
    from slipstream.kernels.rows import decode_rows

    layer, num_slots, width = LAYERS["7b"], 3, 4
    case = Step(layer, [2000] * num_slots, [width] * num_slots, torch.bfloat16)
    slots = torch.arange(num_slots, device="cuda")
    positions, kv_rows = (torch.zeros(num_slots * width, dtype=torch.int64, device="cuda") for _ in range(2))
    blocks = RowBlocks(
        case.tables, positions, slots.int(), (slots * width).int(), torch.full_like(slots, width).int(), width, 2048
    )
    lengths = torch.randint(0, 2000, (16, num_slots), generator=torch.Generator().manual_seed(0)).cuda()
    outs = torch.empty(len(lengths), num_slots * width, 32 * 128, device="cuda", dtype=torch.bfloat16)

    def run(step: int, out: Tensor) -> None:
        decode_rows(slots, lengths[step], case.tables, width, PAGE_SIZE, positions, kv_rows)
        paged_attention(case.parts[0], case.cache, blocks, out, layer.scale)

    run(0, outs[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for step, out in enumerate(outs):
            run(step, out)
    graph.replay()
    for step, out in enumerate(outs):
        decode_rows(slots, lengths[step], case.tables, width, PAGE_SIZE, positions, kv_rows)
        torch.cuda.synchronize()
        expected = torch.empty_like(out)
        paged_attention(case.parts[0], case.cache, blocks, expected, layer.scale)
        assert torch.equal(out, expected)
