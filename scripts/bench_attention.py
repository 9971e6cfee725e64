"""How fast the ragged attention kernel reads keys and values: every case in a CUDA graph, many layers in rotation.

    python scripts/bench_attention.py                        decode, verify and chunk rows of a 7b
    python scripts/bench_attention.py --try                  compiled in other ways too: the best five of each case
    python scripts/bench_attention.py --heads 96 --kv-heads 8 --head-dim 128 --page-size 16 --case 64x4x2048

A case is REQUESTSxROWSxLENGTH: so many requests, each with its last ROWS positions as rows and LENGTH tokens in the
cache. The kernel knows no length: it is told that no request is longer than --max-len. TB/s are bytes of keys and
values, each counted once; TFLOP/s count what the causal mask leaves.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from triton.runtime.errors import OutOfResources

from slipstream.attention.layer import AttentionLayer
from slipstream.attention.triton import rows_per_block
from slipstream.kernels.paged_attention import AttentionConfig, RowBlocks, paged_attention

CASES = ("64x4x2048", "1x4x16384", "64x1x640", "256x1x576", "8x4x640", "1x4x640", "1x1x256")
CASES += ("1x128x128", "8x128x640", "1x1024x1024", "1x512x8192")  # chunks
MOST_DECODE_ROWS = 17  # more are a chunk, cut into blocks
CACHE_BYTES = 2**29  # of all layers in rotation: far more than the L2 holds
MOST_LAYERS = 64
SECONDS = 0.2  # of replays for one figure
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
    """How the kernel is run; None: as it is by default."""

    config: AttentionConfig | None = None
    splits: int | None = None
    rows_per_block: int | None = None

    def __str__(self) -> str:
        parts = [] if self.config is None else [str(self.config)]
        parts += [] if self.splits is None else [f"splits={self.splits}"]
        parts += [] if self.rows_per_block is None else [f"rows_per_block={self.rows_per_block}"]
        return ", ".join(parts) or "default"


class Bench:
    """One case: its caches, rows and figures."""

    def __init__(self, case: Case, shape: Shape) -> None:
        self.case, self.shape = case, shape
        pages = -(-case.length // shape.page_size)
        num_pages = case.requests * pages + 1
        cache_bytes = num_pages * shape.page_size * shape.bytes_per_token
        self.num_layers = max(min(CACHE_BYTES // cache_bytes, MOST_LAYERS), 2)
        size = (num_pages, shape.page_size, 2, shape.kv_heads, shape.head_dim)
        self.caches = [torch.randn(size, device=DEVICE, dtype=shape.dtype) for _ in range(self.num_layers)]
        self.tables = torch.zeros(case.requests, shape.max_len // shape.page_size, dtype=torch.int32, device=DEVICE)
        self.tables[:, :pages] = (torch.randperm(num_pages - 1, device=DEVICE) + 1).view(case.requests, pages)
        num_rows = case.requests * case.rows
        self.q = torch.randn(num_rows, shape.heads, shape.head_dim, device=DEVICE, dtype=shape.dtype)
        own = torch.arange(case.length - case.rows, case.length, device=DEVICE)
        self.positions = own.repeat(case.requests)
        self.out = torch.empty(num_rows, shape.heads * shape.head_dim, device=DEVICE, dtype=shape.dtype)
        self.scale = shape.head_dim**-0.5

    @property
    def is_chunk(self) -> bool:
        return self.case.rows > MOST_DECODE_ROWS

    def ways(self) -> Iterator[Way]:
        """What --try measures besides the default."""
        warps, stages = ((4, 8), (2, 3)) if self.is_chunk else ((2, 4), (2, 3, 4))
        for block_n, num_warps, num_stages in itertools.product((32, 64, 128), warps, stages):
            config = AttentionConfig(block_n, num_warps, num_stages)
            if self.is_chunk:
                heads_per_kv = self.shape.heads // self.shape.kv_heads
                yield from (Way(config, rows_per_block=max(most // heads_per_kv, 1)) for most in (64, 128))
            else:
                yield Way(config)
        yield Way(AttentionConfig(64, 4, 3, carry_pages=False))
        yield from (Way(splits=splits) for splits in (1, 2, 3, 4, 8, 16, 33, 66))

    def seconds(self, way: Way) -> float:
        """Of one layer."""
        blocks = self._blocks(way)

        def run() -> None:
            for cache in self.caches:
                paged_attention(self.q, cache, blocks, self.out, self.scale, splits=way.splits, config=way.config)

        return graph_seconds(run) / self.num_layers

    def _blocks(self, way: Way) -> RowBlocks:
        case, shape = self.case, self.shape
        layer = AttentionLayer(shape.heads, shape.kv_heads, shape.head_dim, self.scale)
        step = way.rows_per_block or (rows_per_block([layer]) if self.is_chunk else case.rows)
        blocks = [
            (request, request * case.rows + first, min(step, case.rows - first))
            for request in range(case.requests)
            for first in range(0, case.rows, step)
        ]
        slots, starts, sizes = (
            torch.tensor(column, dtype=torch.int32, device=DEVICE) for column in zip(*blocks, strict=True)
        )
        return RowBlocks(self.tables, self.positions, slots, starts, sizes, step, shape.max_len)

    def figures(self, seconds: float) -> str:
        case, shape = self.case, self.shape
        kv_bytes = case.requests * case.length * shape.bytes_per_token
        pairs = case.requests * case.rows * (case.length - (case.rows - 1) / 2)
        flops = 4 * pairs * shape.heads * shape.head_dim
        return f"{seconds * 1e6:9.2f} us {kv_bytes / seconds / 1e12:7.2f} TB/s {flops / seconds / 1e12:7.1f} TFLOP/s"


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


def try_ways(bench: Bench) -> None:
    """Print the fastest five."""
    found: list[tuple[float, str]] = []
    for way in bench.ways():
        try:
            found.append((bench.seconds(way), str(way)))
        except OutOfResources:
            continue  # shared memory or registers: not a way to compile this
    for seconds, name in sorted(found)[:5]:
        print(f"{'':12} {bench.figures(seconds)}  {name}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--max-len", type=int, default=32768, help="bound of all lengths")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--case", nargs="+", default=CASES, metavar="REQUESTSxROWSxLENGTH")
    parser.add_argument("--try", action="store_true", dest="tries", help="compile in other ways too")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this measures a CUDA device, and there is none")
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[options.dtype]
    shape = Shape(options.heads, options.kv_heads, options.head_dim, options.page_size, options.max_len, dtype)
    print(torch.cuda.get_device_name(), shape, flush=True)
    for text in options.case:
        case = Case(*(int(part) for part in text.split("x")))
        if not 0 < case.rows <= case.length <= shape.max_len:
            parser.error(f"{text}: rows <= length <= {shape.max_len} (--max-len) must hold")
        bench = Bench(case, shape)
        print(f"{case!s:12} {bench.figures(bench.seconds(Way()))}  default, {bench.num_layers} layers", flush=True)
        if options.tries:
            try_ways(bench)


if __name__ == "__main__":
    main()
