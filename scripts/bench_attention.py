"""What the attention of one layer adds to a decode step, everything it reads cold, as between the products of a model.

    python scripts/bench_attention.py                        decode and verify rows of a 7b
    python scripts/bench_attention.py --try                  compiled and split in other ways too
    python scripts/bench_attention.py --heads 96 --kv-heads 8 --head-dim 128 --page-size 16 --case 64x4x2048

A case is REQUESTSxROWSxLENGTH: so many requests, each with its last ROWS positions as rows and LENGTH tokens in the
cache. A CUDA graph holds many layers: a kernel that reads as many bytes as a layer has weights, then rotate_and_store
and paged_attention, which know no length, only that none is above --max-len. Its time less that of a graph of the
reading kernels alone is what is shown; TB/s are bytes of keys and values, each counted once. "n32 w4 s3 x32" is a block
of 32 keys, 4 warps, 3 stages, 32 splits. 1x128x128 is a prompt, its rows cut into blocks as a chunk's are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import torch
import triton
import triton.language as tl
from triton.runtime.errors import OutOfResources

from slipstream.attention.base import Rotation
from slipstream.attention.layer import AttentionLayer
from slipstream.attention.triton import rows_per_block
from slipstream.kernels.launch import launch_options, let_next_start, num_multiprocessors, wait_for_inputs
from slipstream.kernels.paged_attention import AttentionConfig, RowBlocks, choose_launch, paged_attention
from slipstream.kernels.rotate_and_store import rotate_and_store

CASES = (
    *("1x1x256", "1x1x1024", "1x4x512", "8x1x640", "16x1x640", "32x1x640", "64x1x640", "64x4x640", "256x1x576"),
    *("64x4x2048", "1x4x16384", "1x128x128"),
)
MOST_DECODE_ROWS = 17  # more are a chunk, cut into blocks
CACHE_BYTES = 2**29  # of all layers in rotation: far more than the L2 holds
MOST_LAYERS = 64
WEIGHT_BYTES = 60 * 2**20  # read before each attention, each time others than before
NUM_WEIGHTS = 8
STREAM_BLOCK = 8192  # values that one program reads
SECONDS = 0.06  # of replays for one figure
DEVICE = torch.device("cuda")


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int
    page_size: int
    max_len: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.kv_heads * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True)
class Case:
    requests: int
    rows: int
    length: int

    def __str__(self) -> str:
        return f"{self.requests}x{self.rows}x{self.length}"


@dataclass(frozen=True)
class Way:
    """How the attention is run."""

    config: AttentionConfig
    splits: int

    def __str__(self) -> str:
        config = self.config
        return f"n{config.block_n} w{config.num_warps} s{config.num_stages} x{self.splits}"


def other_ways(default: Way) -> Iterator[Way]:
    """What --try measures besides the default."""
    config, splits = default.config, default.splits
    for block_n, num_stages in product((32, 64), (2, 3, 4)):
        if (block_n, num_stages) != (config.block_n, config.num_stages):
            yield replace(default, config=replace(config, block_n=block_n, num_stages=num_stages))
    yield from (replace(default, config=replace(config, num_warps=num_warps)) for num_warps in (1, 2, 8))
    counts = {1, splits // 2, min(splits * 3 // 2, 128), min(splits * 2, 128)} if splits > 1 else {2}
    yield from (replace(default, splits=count) for count in sorted(counts - {splits}))


@triton.jit
def _stream(weights, sums, BLOCK: tl.constexpr, PDL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Reads memory as a product of few rows reads its weights."""
    let_next_start(PDL)
    program = tl.program_id(0).to(tl.int64)
    values = tl.load(weights + program * BLOCK + tl.arange(0, BLOCK), eviction_policy="evict_first")
    wait_for_inputs(PDL)
    tl.store(sums + program, tl.sum(values.to(tl.float32), 0))


class Stream:
    """The rest of each layer."""

    def __init__(self) -> None:
        count = WEIGHT_BYTES // 2 // STREAM_BLOCK
        self._weights = torch.randn(NUM_WEIGHTS, count * STREAM_BLOCK, device=DEVICE, dtype=torch.bfloat16)
        self._sums = torch.empty(count, dtype=torch.float32, device=DEVICE)

    def run(self, layer: int) -> None:
        weights = self._weights[layer % NUM_WEIGHTS]
        _stream[(self._sums.shape[0],)](weights, self._sums, BLOCK=STREAM_BLOCK, num_warps=4, **launch_options(DEVICE))

    @cache  # noqa: B019 (one object, as long as the process)
    def seconds(self, num_layers: int) -> float:
        def run() -> None:
            for layer in range(num_layers):
                self.run(layer)

        return graph_seconds(run)


class Bench:
    """One case: its caches, rows and figures."""

    def __init__(self, case: Case, shape: Shape, stream: Stream) -> None:
        self.case, self.shape, self.stream = case, shape, stream
        pages = -(-case.length // shape.page_size)
        num_pages = case.requests * pages + 1
        cache_bytes = num_pages * shape.page_size * shape.bytes_per_token
        self.num_layers = max(min(CACHE_BYTES // cache_bytes, MOST_LAYERS), 2)
        size = (num_pages, shape.page_size, 2, shape.kv_heads, shape.head_dim)
        self.caches = [torch.randn(size, device=DEVICE, dtype=shape.dtype) for _ in range(self.num_layers)]
        tables = torch.zeros(case.requests, shape.max_len // shape.page_size, dtype=torch.int32, device=DEVICE)
        tables[:, :pages] = (torch.randperm(num_pages - 1, device=DEVICE) + 1).view(case.requests, pages)
        num_rows = case.requests * case.rows
        heads = shape.heads + 2 * shape.kv_heads
        self.qkv = torch.randn(num_rows, heads, shape.head_dim, device=DEVICE, dtype=shape.dtype)
        angles = torch.rand(num_rows, 1, shape.head_dim, device=DEVICE)
        self.rotation = Rotation(angles.cos(), angles.sin(), None)
        own = torch.arange(case.length - case.rows, case.length, device=DEVICE)
        self.kv_rows = (
            (tables[:, own // shape.page_size].long() * shape.page_size + own % shape.page_size).flatten().contiguous()
        )
        self.out = torch.empty(num_rows, shape.heads * shape.head_dim, device=DEVICE, dtype=shape.dtype)
        self.scale = shape.head_dim**-0.5
        self.blocks = self._blocks(tables, own.repeat(case.requests))

    def _blocks(self, tables: torch.Tensor, positions: torch.Tensor) -> RowBlocks:
        case, shape = self.case, self.shape
        layer = AttentionLayer(shape.heads, shape.kv_heads, shape.head_dim, self.scale)
        step = case.rows if case.rows <= MOST_DECODE_ROWS else rows_per_block([layer])
        blocks = [
            (request, request * case.rows + first, min(step, case.rows - first))
            for request in range(case.requests)
            for first in range(0, case.rows, step)
        ]
        slots, starts, sizes = (
            torch.tensor(column, dtype=torch.int32, device=DEVICE) for column in zip(*blocks, strict=True)
        )
        return RowBlocks(tables, positions, slots, starts, sizes, step, shape.max_len)

    def default(self) -> Way:
        shape, blocks = self.shape, self.blocks
        launch = choose_launch(
            len(blocks.slots),
            blocks.rows_per_block,
            (shape.heads, shape.kv_heads, shape.head_dim),
            shape.dtype.itemsize,
            shape.max_len,
            num_multiprocessors(DEVICE),
        )
        return Way(launch.config, launch.splits)

    def seconds(self, way: Way) -> float:
        """Of one layer."""

        def run() -> None:
            for layer, layer_cache in enumerate(self.caches):
                self.stream.run(layer)
                q = rotate_and_store(self.qkv, self.rotation, layer_cache, self.kv_rows, self.shape.heads)
                paged_attention(q, layer_cache, self.blocks, self.out, self.scale, splits=way.splits, config=way.config)

        return (graph_seconds(run) - self.stream.seconds(self.num_layers)) / self.num_layers

    def show(self, way: Way, note: str = "") -> None:
        """Print one line of the table; nothing if the way cannot be compiled."""
        try:
            seconds = self.seconds(way)
        except OutOfResources:  # shared memory or registers
            return
        speed = self.case.requests * self.case.length * self.shape.bytes_per_token / seconds / 1e12
        print(f"{self.case!s:11} {way!s:19} {seconds * 1e6:8.2f} {speed:6.2f} {note}", flush=True)


def graph_seconds(run: Callable[[], None]) -> float:
    """Of one call: the least of three series of replays of a graph that holds one."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    num_replays = max(int(SECONDS / 3 / replay_seconds(graph, 3)), 3)
    return min(replay_seconds(graph, num_replays) for _ in range(3))


def replay_seconds(graph: torch.cuda.CUDAGraph, count: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(count):
        graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--max-len", type=int, default=32768, help="bound of all lengths")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--case", nargs="+", default=CASES, metavar="REQUESTSxROWSxLENGTH")
    parser.add_argument("--try", action="store_true", dest="tries", help="compile and split in other ways too")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this measures a CUDA device, and there is none")
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[options.dtype]
    shape = Shape(options.heads, options.kv_heads, options.head_dim, options.page_size, options.max_len, dtype)
    stream = Stream()
    print(torch.cuda.get_device_name(), shape)
    print(f"{'case':11} {'config':19} us/layer   TB/s", flush=True)
    for text in options.case:
        case = Case(*(int(part) for part in text.split("x")))
        if not 0 < case.rows <= case.length <= shape.max_len:
            parser.error(f"{text}: rows <= length <= {shape.max_len} (--max-len) must hold")
        bench = Bench(case, shape, stream)
        default = bench.default()
        bench.show(default, "default")
        for way in other_ways(default) if options.tries else ():
            bench.show(way)


if __name__ == "__main__":
    main()
