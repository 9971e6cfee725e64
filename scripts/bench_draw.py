"""Time the kernels that draw tokens, on the GPU at hand. Microseconds of one call, from a CUDA graph of many.

python scripts/bench_draw.py
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch

from slipstream.kernels.draw import draw_tokens
from slipstream.kernels.verify_chain import verify_chain
from slipstream.messages.sampling import SamplingParams
from slipstream.sampling.sampler import Sampler

ROWS = (1, 4, 64, 256)
VOCAB_SIZES = (32768, 131072)
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "min-p": {"temperature": 0.8, "min_p": 0.05},
    "top-k": {"temperature": 0.8, "top_k": 50},
    "top-p": {"temperature": 0.8, "top_p": 0.95},
    "top-k, top-p": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
}
CALLS_PER_GRAPH = 20
DEVICE = torch.device("cuda")


def microseconds(call: Callable[[], object], num_replays: int) -> float:
    """Of one call; the fastest of `num_replays` replays of a graph with CALLS_PER_GRAPH calls."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS_PER_GRAPH):
            call()
    graph.replay()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    best = float("inf")
    for _ in range(num_replays):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end))
    return 1000 * best / CALLS_PER_GRAPH


def time_draws(num_rows: int, vocab_size: int, dtype: torch.dtype, num_replays: int) -> list[float]:
    """For each of REQUESTS. The logits are normal with a standard deviation of 3."""
    torch.manual_seed(0)
    logits = (3 * torch.randn(num_rows, vocab_size, device=DEVICE)).to(dtype)
    slots = torch.arange(num_rows, device=DEVICE)
    times = []
    for request in REQUESTS.values():
        sampler = Sampler(num_rows, vocab_size, DEVICE)
        for slot in range(num_rows):
            sampler.add(slot, SamplingParams(max_new_tokens=1, seed=slot, **request), [0], 1)
        tables = sampler.tables()
        times.append(microseconds(lambda tables=tables: draw_tokens(logits, slots, slots, tables), num_replays))
    return times


def time_verify(num_slots: int, num_replays: int) -> float:
    """Four rows of each slot."""
    drawn = torch.zeros(num_slots, 4, dtype=torch.int64, device=DEVICE)
    committed_len, bonus, keys = torch.zeros(3, num_slots, dtype=torch.int64, device=DEVICE)
    slots = torch.arange(num_slots, device=DEVICE)
    caps = torch.full((num_slots,), 3, dtype=torch.int32, device=DEVICE)
    inputs = (drawn, drawn == 0, drawn[:, 1:].contiguous(), slots, caps)
    return microseconds(lambda: verify_chain(*inputs, 3.0, keys, committed_len, bonus, -1), num_replays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of the logits")
    parser.add_argument("--num-replays", type=int, default=5)
    arguments = parser.parse_args()
    dtype: torch.dtype = getattr(torch, arguments.dtype)
    print(f"{torch.cuda.get_device_name()}, {arguments.dtype}, microseconds")
    print(f"{'rows':>5} {'vocab':>7}" + "".join(f"{name:>14}" for name in REQUESTS))
    for num_rows in ROWS:
        for vocab_size in VOCAB_SIZES:
            times = time_draws(num_rows, vocab_size, dtype, arguments.num_replays)
            print(f"{num_rows:>5} {vocab_size:>7}" + "".join(f"{time:>14.1f}" for time in times), flush=True)
    print("verify_chain: " + ", ".join(f"{n} slots {time_verify(n, arguments.num_replays):.1f}" for n in ROWS))


if __name__ == "__main__":
    main()
