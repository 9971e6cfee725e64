"""Time the kernels that a large prefill chunk's attention can use, on a CUDA device.

    python scripts/bench_prefill_attention.py [--num-heads 32] [--num-kv-heads 8] [--head-dim 128] [--dtype bfloat16]

For each case and implementation: the median time of one layer in us, TFLOP/s (4 * head_dim * heads for each pair of a
row and a key that it sees), the first call in ms (with what it compiles or prepares), the host's time to plan a step in
us, and the largest error of some rows, relative to the largest value, against fp32 arithmetic. "triton" reads the pages
and includes writing the new keys and values; "paged fa3" does that too, gathers the pages and then runs FlashInfer's
FlashAttention-3; the others start from contiguous keys and values.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from slipstream.attention.base import AttentionBackend, Layout
from slipstream.attention.flashinfer_prefill import FlashInferPrefill
from slipstream.attention.large_prefill import LargePrefill
from slipstream.attention.layer import AttentionLayer
from slipstream.attention.paging import make_layout
from slipstream.attention.triton import TritonAttention

PAGE_SIZE = 16
DEVICE = torch.device("cuda")
CHECKED_ROWS = 32  # first and last ones of the first and the last request


@dataclass(frozen=True)
class Case:
    """Chunks of num_rows[r] rows at the end of kv_lens[r] keys."""

    name: str
    num_rows: tuple[int, ...]
    kv_lens: tuple[int, ...]

    def flops(self, layer: AttentionLayer) -> float:
        """What the scores and the weighted sums of values take."""
        pairs = sum(n * (length - n) + n * (n + 1) / 2 for n, length in zip(self.num_rows, self.kv_lens, strict=True))
        return 4 * pairs * layer.num_heads * layer.head_dim


CASES = (
    Case("1 x 4096", (4096,), (4096,)),
    Case("1 x 8192", (8192,), (8192,)),
    Case("4 x 4096", (4096,) * 4, (4096,) * 4),
    Case("2048 on 16384", (2048,), (18432,)),
)


@dataclass(frozen=True)
class Inputs:
    """Random rows, keys and values of a case, and the same keys and values in pages."""

    q: Tensor  # [T, heads, head_dim]
    kv: Tensor  # [N, 2, kv heads, head_dim]
    new_rows: Tensor  # int64 [T]: of the N keys, those of the rows
    cache: Tensor
    layout: Layout

    @classmethod
    def random(cls, case: Case, layer: AttentionLayer, dtype: torch.dtype) -> "Inputs":
        q = torch.randn(sum(case.num_rows), layer.num_heads, layer.head_dim, device=DEVICE, dtype=dtype)
        kv = torch.randn(sum(case.kv_lens), *layer.cache_shape, device=DEVICE, dtype=dtype)
        pages = [-(-length // PAGE_SIZE) for length in case.kv_lens]
        ids = random.Random(0).sample(range(1, sum(pages) + 1), sum(pages))
        tables = torch.zeros(len(pages), max(pages), dtype=torch.int32)
        cache = torch.zeros(sum(pages) + 1, PAGE_SIZE, *layer.cache_shape, device=DEVICE, dtype=dtype)
        for request, (count, part) in enumerate(zip(pages, kv.split(case.kv_lens), strict=True)):
            own = [ids.pop() for _ in range(count)]
            tables[request, :count] = torch.tensor(own, dtype=torch.int32)
            rows = torch.tensor([page * PAGE_SIZE + at for page in own for at in range(PAGE_SIZE)], device=DEVICE)
            cache.flatten(0, 1)[rows[: len(part)]] = part
        starts = [length - n for n, length in zip(case.num_rows, case.kv_lens, strict=True)]
        layout, _ = make_layout(tables.to(DEVICE), PAGE_SIZE, range(len(pages)), starts, case.num_rows, num_decode=0)
        ends = list(accumulate(case.kv_lens))
        new = [torch.arange(end - n, end, device=DEVICE) for end, n in zip(ends, case.num_rows, strict=True)]
        return cls(q, kv, torch.cat(new), cache, layout)


@dataclass(frozen=True)
class Candidate:
    """One implementation for one case: what plans a step, and what runs a layer."""

    name: str
    plan: Callable[[], None]
    run: Callable[[], Tensor]


def candidates(case: Case, layer: AttentionLayer, inputs: Inputs) -> list[Candidate]:
    """What this machine can run."""
    dtype, found = inputs.q.dtype, []
    problem = FlashInferPrefill.available([layer], dtype, DEVICE)
    has_fa3 = problem is None and torch.cuda.get_device_capability(DEVICE)[0] == 9
    if problem is not None:
        print(f"no FlashInfer: it {problem}", file=sys.stderr)
    if has_fa3:
        found.append(contiguous("fa3", FlashInferPrefill(kernel="fa3"), case, layer, inputs))
    if problem is None:
        found.append(contiguous("fa2", FlashInferPrefill(kernel="fa2"), case, layer, inputs))
    found.append(paged("triton", TritonAttention([layer], [inputs.cache]), inputs))
    if has_fa3:
        large = FlashInferPrefill(min_rows=0, kernel="fa3")
        found.append(paged("paged fa3", TritonAttention([layer], [inputs.cache], large_prefill=large), inputs))
    return found


def contiguous(name: str, prefill: LargePrefill, case: Case, layer: AttentionLayer, inputs: Inputs) -> Candidate:
    """Keys and values as a gather leaves them: side by side, so with a stride between tokens."""
    k, v = inputs.kv.unbind(1)
    return Candidate(
        name,
        lambda: prefill.plan(case.num_rows, case.kv_lens, DEVICE),
        lambda: prefill.run(layer, inputs.q, k, v),
    )


def paged(name: str, backend: AttentionBackend, inputs: Inputs) -> Candidate:
    k, v = inputs.kv.index_select(0, inputs.new_rows).unbind(1)
    return Candidate(name, lambda: backend.plan(inputs.layout), lambda: backend.run(0, inputs.q, k, v))


def timed_ms(function: Callable[[], object]) -> float:
    """With what it still has to do on the device."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) * 1e3


def device_us(function: Callable[[], object], repeats: int) -> float:
    """Median over single calls, between events: the host may be slower than the device, which then is idle, so a short
    kernel that keeps the device busy goes first.
    """
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(500_000)
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)


def reference_error(out: Tensor, case: Case, layer: AttentionLayer, inputs: Inputs) -> float:
    """Largest error of some rows, relative to the largest value of the reference."""
    row_ends, key_ends = list(accumulate(case.num_rows)), list(accumulate(case.kv_lens))
    worst = largest = 0.0
    for request in {0, len(row_ends) - 1}:
        n, length = case.num_rows[request], case.kv_lens[request]
        rows = torch.tensor(sorted({*range(min(CHECKED_ROWS, n)), *range(max(n - CHECKED_ROWS, 0), n)}), device=DEVICE)
        q = inputs.q[row_ends[request] - n + rows].float().transpose(0, 1)
        k, v = (x[key_ends[request] - length : key_ends[request]].float().transpose(0, 1) for x in inputs.kv.unbind(1))
        mask = torch.arange(length, device=DEVICE) <= (length - n + rows)[:, None]
        with sdpa_kernel(SDPBackend.MATH):
            right = F.scaled_dot_product_attention(
                q[None], k[None], v[None], attn_mask=mask, scale=layer.scale, enable_gqa=True
            )
        right = right[0].transpose(0, 1).flatten(1)
        worst = max(worst, (out[row_ends[request] - n + rows].float() - right).abs().max().item())
        largest = max(largest, right.abs().max().item())
    return worst / largest


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-heads", type=int, default=32)
    parser.add_argument("--num-kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("bench_prefill_attention.py needs a CUDA device")
    layer = AttentionLayer(options.num_heads, options.num_kv_heads, options.head_dim, scale=options.head_dim**-0.5)
    print(f"{torch.cuda.get_device_name(DEVICE)}, torch {torch.__version__}, {layer}, {options.dtype}")
    print(f"{'case':15} {'kernel':10} {'us':>9} {'TFLOP/s':>8} {'first ms':>9} {'plan us':>8} {'error':>9}")
    with torch.inference_mode():
        for case in CASES:
            inputs = Inputs.random(case, layer, getattr(torch, options.dtype))
            for candidate in candidates(case, layer, inputs):
                report(candidate, case, layer, inputs, options.repeats)


def report(candidate: Candidate, case: Case, layer: AttentionLayer, inputs: Inputs, repeats: int) -> None:
    def one_step() -> None:
        candidate.plan()
        candidate.run()

    first = timed_ms(one_step)
    step, layer_again = timed_ms(one_step), timed_ms(candidate.run)
    us = device_us(candidate.run, repeats)
    error = reference_error(candidate.run(), case, layer, inputs)
    print(
        f"{case.name:15} {candidate.name:10} {us:9.0f} {case.flops(layer) / us / 1e6:8.0f} {first:9.1f} "
        f"{max(step - layer_again, 0) * 1e3:8.0f} {error:9.1e}",
        flush=True,
    )


if __name__ == "__main__":
    main()
