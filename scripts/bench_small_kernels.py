"""Time the small kernels of a layer on a GPU, each in a CUDA graph of many launches.

    python scripts/bench_small_kernels.py                     at 1, 4, 64 and 8192 rows
    python scripts/bench_small_kernels.py --rows 1 16384      at these

For a 7B model: hidden size 4096, 14336 inside the feed-forward part, 32 query and 8 key-value heads of 128, bf16. Every
cell is microseconds per launch and, where there is much to move, the rate at which bytes that must be read or written
are. With few rows everything is in the L2 cache, as in a decode step.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from slipstream.attention.base import Rotation
from slipstream.kernels.activation import silu_and_mul
from slipstream.kernels.embedding import embed_and_concat, embed_rows
from slipstream.kernels.move_rows import CacheRowMover
from slipstream.kernels.norm import add_rms_norm
from slipstream.kernels.rotary_tables import rotary_tables
from slipstream.kernels.rotate_and_store import rotate_and_store
from slipstream.kernels.rows import chunk_rows, decode_rows

CUDA = torch.device("cuda")
HIDDEN, INNER, VOCAB, LAYERS = 4096, 14336, 32768, 32
HEADS, KV_HEADS, HEAD_DIM, PAGE_SIZE = 32, 8, 128, 16
ELEMENT = 2  # bytes
MANY_BYTES = 2**22  # from here on a rate says something


@dataclass(frozen=True)
class Case:
    name: str
    num_bytes: int  # read and written
    run: Callable[[], object]


def bf16(*shape: int) -> Tensor:
    return torch.randn(shape, device=CUDA, dtype=torch.bfloat16)


def integers(below: int, count: int) -> Tensor:
    return torch.randint(below, (count,), device=CUDA)


def cases(rows: int) -> list[Case]:
    """All kernels on `rows` rows."""
    delta, residual, weight = bf16(rows, HIDDEN) / 64, bf16(rows, HIDDEN), torch.ones(HIDDEN, device=CUDA)
    gate_up, table = bf16(rows, 2 * INNER), bf16(VOCAB, HIDDEN)
    qkv = bf16(rows, HEADS + 2 * KV_HEADS, HEAD_DIM)
    frequencies = torch.linspace(-1, 1, HEAD_DIM, device=CUDA)
    positions, token_ids, slots = integers(100_000, rows), integers(VOCAB, rows), torch.arange(rows, device=CUDA)
    rotation = Rotation(*rotary_tables(positions, frequencies, 1.0), None)
    num_pages = rows // PAGE_SIZE + 1
    caches = [bf16(num_pages, PAGE_SIZE, 2, KV_HEADS, HEAD_DIM) for _ in range(LAYERS)]
    kv_rows, sources = (torch.randperm(num_pages * PAGE_SIZE, device=CUDA)[:rows] for _ in range(2))
    page_tables = torch.ones(rows, 64, dtype=torch.int32, device=CUDA)
    committed_len, place = integers(1000, rows), (torch.empty_like(slots), torch.empty_like(slots))
    chunk_positions = torch.arange(rows, device=CUDA) % 1024
    mover = CacheRowMover(caches)
    row, kv_row = rows * HIDDEN * ELEMENT, rows * 2 * KV_HEADS * HEAD_DIM * ELEMENT
    tables = rows * 2 * HEAD_DIM * 4
    return [
        Case("add_rms_norm", 4 * row, lambda: add_rms_norm(delta, residual, weight, 1e-5)),
        Case("add_rms_norm, no delta", 2 * row, lambda: add_rms_norm(None, residual, weight, 1e-5)),
        Case("silu_and_mul", 3 * rows * INNER * ELEMENT, lambda: silu_and_mul(gate_up)),
        Case(
            "rotate_and_store",
            2 * qkv.nbytes + tables,
            lambda: rotate_and_store(qkv, rotation, caches[0], kv_rows, HEADS),
        ),
        Case("rotary_tables", tables, lambda: rotary_tables(positions, frequencies, 1.0)),
        Case("decode_rows", 0, lambda: decode_rows(slots, committed_len, page_tables, 1, PAGE_SIZE, *place)),
        Case("chunk_rows", 0, lambda: chunk_rows(slots, chunk_positions, page_tables, PAGE_SIZE)),
        Case("embed_rows", 2 * row, lambda: embed_rows(table, token_ids)),
        Case("embed_and_concat", 4 * row, lambda: embed_and_concat(table, token_ids, residual)),
        Case(f"CacheRowMover, {LAYERS} layers", 4 * LAYERS * kv_row, lambda: mover.move(sources, kv_rows)),
    ]


def seconds_per_run(case: Case) -> float:
    """The least of several replays of a graph with many runs."""
    runs = 10 if case.num_bytes > 2**28 else 100
    case.run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(runs):
            case.run()
    graph.replay()
    times = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000 / runs)
    return min(times)


def cell(case: Case) -> str:
    seconds = seconds_per_run(case)
    rate = f" {case.num_bytes / seconds / 1e9:6.0f} GB/s" if case.num_bytes >= MANY_BYTES else ""
    return f"{seconds * 1e6:7.2f} us{rate}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 64, 8192])
    all_rows = parser.parse_args().rows
    columns = [{case.name: cell(case) for case in cases(rows)} for rows in all_rows]
    table = Table("kernel", *(f"{rows} rows" for rows in all_rows), title=torch.cuda.get_device_name(CUDA))
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    Console(width=120).print(table)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
