"""Finds the fastest config of every product with few rows on this GPU, and writes the table that the kernels read.

    python scripts/tune_skinny.py                                         all cases, most valuable ones first
    python scripts/tune_skinny.py --only 7b --rows 1 4 --seconds 120      some of them
    python scripts/tune_skinny.py --ops norm_gate_up norm_linear          those behind a norm
    python scripts/tune_skinny.py --output table.json                     add to a table, or start one

Each config is first checked against float64: its error may be twice that of torch's own operations. Then it is timed
in a CUDA graph that goes through more copies of the weight than the L2 cache holds, one launch after the other as in
production. A product that follows attention is timed behind a kernel that leaves the memory idle for some microseconds,
which it may use to fetch weights. A product behind a norm is measured in three ways: one kernel for both, the norm's
kernel and a product of ours, the norm's kernel and cuBLAS, with the activation's kernel for gate and up. The best
three configs of each case are printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import OutOfResources

from slipstream.kernels.activation import silu_and_mul
from slipstream.kernels.launch import launch_options, let_next_start, num_multiprocessors, wait_for_inputs
from slipstream.kernels.norm import add_rms_norm
from slipstream.kernels.skinny import skinny_gate_up, skinny_linear, skinny_norm_gate_up, skinny_norm_linear
from slipstream.kernels.skinny_configs import CUBLAS, MMA_COLUMNS, ROW_BUCKETS, Op, SkinnyConfig, table_name

TABLES = Path(__file__).resolve().parent.parent / "python" / "slipstream" / "kernels" / "tuning"
ROTATED_BYTES = 256e6
MIN_LAUNCHES = 12
REPLAYS = 5
SHARED_MEMORY = 227 * 1024
EPS = 1e-5
SAME_BITS_GAIN = 1.02  # a config whose rows have the bits of one row's config is taken if it is slower by less
GAP_STEPS = 2500  # of the kernel that stands for attention: about 6 us
PLAIN_OPS: dict[Op, Op] = {"norm_linear": "linear", "norm_gate_up": "gate_up"}  # what stands behind a norm
MOST_FEW_ROWS = 16  # up to here an mma and a dot are tried, with more a tma is
MAX_MMA_WARPS = 16  # of a multiprocessor: a thread of an mma takes up to 128 registers
WEIGHT_REGISTERS = 64  # of a thread, for weights on their way
PRINTED = 3


@dataclass(frozen=True)
class Shape:
    model: str
    name: str
    op: Op
    n: int
    k: int
    after_attention: bool = False


@dataclass(frozen=True)
class Case:
    shape: Shape
    rows: int


@dataclass(frozen=True)
class Candidate:
    """A config of the case's op, or of the one that is left of it behind a norm's kernel."""

    op: Op
    config: SkinnyConfig


@dataclass(frozen=True)
class Timing:
    candidate: Candidate
    us: float  # of the whole case

    @property
    def config(self) -> SkinnyConfig:
        return self.candidate.config


@dataclass(frozen=True)
class Result:
    case: Case
    timings: tuple[Timing, ...]  # the chosen one of each op comes first
    cublas_us: float

    def best(self, op: Op) -> Timing | None:
        return next((timing for timing in self.timings if timing.candidate.op == op), None)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Those of the table, one for each op that was tried: see parse_table(). Only what nothing else beats gets a
        config; of a product behind a norm, "us" is the time of both.
        """
        shape = self.case.shape
        chosen = [timing for op in (shape.op, PLAIN_OPS.get(shape.op)) if op and (timing := self.best(op))]
        entries = []
        for timing in chosen:
            others = [self.cublas_us] + [t.us for t in chosen if timing.candidate.op == shape.op]
            config: Any = CUBLAS if timing.us > min(others) else dataclasses.asdict(timing.config)
            entries.append({
                "op": timing.candidate.op, "n": shape.n, "k": shape.k, "rows": self.case.rows, "config": config,
                "us": round(timing.us, 2), "cublas_us": round(self.cublas_us, 2),
            })  # fmt: skip
        return entries


SHAPES = (
    Shape("7b", "qkv", "norm_linear", 6144, 4096),
    Shape("7b", "o", "linear", 4096, 4096, after_attention=True),
    Shape("7b", "gate_up", "norm_gate_up", 28672, 4096),
    Shape("7b", "down", "linear", 4096, 14336),
    Shape("7b", "head", "linear", 32768, 4096),
    Shape("7b", "fusion", "linear", 4096, 8192),
    Shape("24b", "qkv", "norm_linear", 6144, 5120),
    Shape("24b", "o", "linear", 5120, 4096, after_attention=True),
    Shape("24b", "gate_up", "norm_gate_up", 65536, 5120),
    Shape("24b", "down", "linear", 5120, 32768),
    Shape("24b", "head", "linear", 131072, 5120),
    Shape("24b", "fusion", "linear", 5120, 10240),
)
PRIORITY = (
    ("7b", 1),
    ("7b", 4),
    ("24b", 1),
    ("7b", 8),
    ("7b", 64),
    ("24b", 64),
    ("7b", 2),
    ("7b", 3),
    ("24b", 4),
    ("7b", 16),
    ("24b", 8),
)


def ordered_groups(only: str | None, rows: Iterable[int], ops: Collection[Op] | None = None) -> list[list[Case]]:
    """The cases of a model and a number of rows, most valuable groups first; one row comes before more. `ops` names
    those of the cases, or what stands in them behind a norm.
    """
    shapes = [s for s in SHAPES if only in (None, s.model) and (not ops or {s.op, PLAIN_OPS.get(s.op)} & set(ops))]
    groups = dict.fromkeys((shape.model, count) for count in sorted(rows) for shape in shapes)
    ordered = sorted(groups, key=lambda g: PRIORITY.index(g) if g in PRIORITY else len(PRIORITY))
    return [[Case(shape, count) for shape in shapes if shape.model == model] for model, count in ordered]


def first_candidates(case: Case, processors: int) -> list[Candidate]:
    """A coarse grid: at most 32."""
    op = case.shape.op
    fused = list(_gemv_grid(case)) if case.rows <= 4 else []
    plain: list[SkinnyConfig] = []
    if 1 < case.rows <= MOST_FEW_ROWS:
        fused += _dot_grid(case, processors)
        plain += [*_mma_grid(case, processors), *_narrow_dot_grid(case)]
        plain += _dot_grid(case, processors) if op in PLAIN_OPS else []
    if case.rows > MOST_FEW_ROWS:
        plain += _tma_grid(case, processors)
    found = [Candidate(op, c) for c in fused] + [Candidate(PLAIN_OPS.get(op, op), c) for c in plain]
    return list(dict.fromkeys(found))


def _parts(case: Case) -> int:
    return 2 if case.shape.op == "norm_gate_up" else 1


def _gemv_grid(case: Case) -> Iterator[SkinnyConfig]:
    for weight_rows in (2, 4, 8):
        for block_k, num_warps in ((1024, 1), (1024, 2), (1024, 4), (2048, 4)):
            row_vectors = block_k // (256 * num_warps)  # 16-byte reads of a thread for a row of a tile
            vectors = weight_rows * row_vectors
            few_registers = vectors <= 16 and vectors * case.rows <= 32 and row_vectors * case.rows <= 8
            if few_registers and block_k <= case.shape.k:
                stages = 2 if vectors <= 8 else 1
                yield SkinnyConfig("gemv", weight_rows // _parts(case), block_k, num_warps, stages)


def _dot_grid(case: Case, processors: int) -> Iterator[SkinnyConfig]:
    outputs = case.shape.n // _parts(case)
    few = case.rows <= 4
    for block_n, block_k, num_warps, stages in (
        (16, 256, 2, 4), (32, 128, 4, 4), (32, 256, 4, 4), (64, 128, 4, 4), (64, 256, 4, 3), (128, 128, 4, 4),
    ):  # fmt: skip
        if few and (block_n not in (32, 64) or block_k > 128):
            continue
        wanted = 2 * processors * block_n // outputs
        split_k = 1 << max(0, wanted.bit_length() - 1) if wanted > 1 else 1
        config = SkinnyConfig("dot", block_n, block_k, num_warps, stages, split_k, prefetch=True)
        if _fits(case, config):
            yield config


def _narrow_dot_grid(case: Case) -> Iterator[SkinnyConfig]:
    """Small blocks, of which many are on a multiprocessor at once: where all are, none has to wait for a place."""
    for block_n, block_k, num_warps, stages in ((16, 128, 1, 4), (16, 128, 2, 6), (16, 256, 4, 4), (32, 128, 2, 4)):
        yield SkinnyConfig("dot", block_n, block_k, num_warps, stages, prefetch=True)


def _tma_grid(case: Case, processors: int) -> Iterator[SkinnyConfig]:
    """Blocks for all multiprocessors at once, or for up to five rounds of them."""
    blocks = case.shape.n // _parts(case) // 64
    for block_k, stages in ((128, 4), (128, 3), (64, 6)):
        for split_k in (1, 2, 4):
            config = SkinnyConfig("tma", 64, block_k, 4, stages, split_k)
            is_even = split_k == 1 or processors * 3 // 4 <= blocks * split_k <= processors * 5
            if is_even and _fits(case, config):
                yield config


def _mma_grid(case: Case, processors: int) -> Iterator[SkinnyConfig]:
    """Blocks of 16 and 32 rows of weights; as many warps as have a place at once, or twice as many with fewer tiles."""
    for weight_rows, chunks in ((16, 1), (16, 2), (16, 4), (32, 1), (32, 2)):
        stages = WEIGHT_REGISTERS // (weight_rows // 2 * chunks)
        for num_warps in (1, 2, 4, 8):
            warps = case.shape.n / weight_rows / processors * num_warps
            many = warps > MAX_MMA_WARPS
            if warps <= MAX_MMA_WARPS / 4 or (warps > 2 * MAX_MMA_WARPS and num_warps > 1) or (many and stages < 4):
                continue
            block_k = MMA_COLUMNS * chunks * num_warps
            yield SkinnyConfig("mma", weight_rows // _parts(case), block_k, num_warps, stages // 2 if many else stages)


def _fits(case: Case, config: SkinnyConfig) -> bool:
    """Whether the pipeline has room in shared memory. Behind a norm, a dot is taken to have it inside: it then reads
    three rows for one. A tma never has.
    """
    num_inputs = 3 if config.kind == "dot" and case.shape.op != "linear" else 1
    inputs = num_inputs * max(8, case.rows)
    return (config.block_n * _parts(case) + inputs) * config.block_k * 2 * config.num_stages <= SHARED_MEMORY


def next_candidates(case: Case, timings: list[Timing]) -> list[Candidate]:
    """Neighbours of the best ones: at most 8 that have not been timed."""
    neighbours: dict[Candidate, None] = {}
    for timing in sorted(timings, key=lambda t: t.us)[:3]:
        best = timing.config
        changes: list[dict[str, Any]] = [{"num_stages": best.num_stages + 1}, {"num_stages": best.num_stages - 1}]
        changes += [{"prefetch": not best.prefetch}]
        if best.kind in ("dot", "tma"):
            changes += [{"split_k": best.split_k * 2}, {"split_k": best.split_k // 2}, {"block_k": best.block_k * 2}]
        elif best.kind == "gemv":
            changes += [{"num_stages": best.num_stages + 2}, {"num_stages": 1, "prefetch": True}]
        else:
            changes += [{"num_stages": best.num_stages + 2}]
        for change in changes:
            if all(value >= 1 for value in change.values() if not isinstance(value, bool)):
                neighbours[Candidate(timing.candidate.op, dataclasses.replace(best, **change))] = None
    known = {timing.candidate for timing in timings}
    pipelined = ("dot", "tma")
    return [c for c in neighbours if c not in known and (c.config.kind not in pipelined or _fits(case, c.config))][:8]


class Problem:
    """Inputs of a case on the GPU, as many weights as do not fit the L2 cache, and the functions to compare."""

    def __init__(self, case: Case, copies: int | None = None) -> None:
        shape = case.shape
        self.case = case
        device = torch.device("cuda")
        self.generator = torch.Generator(device).manual_seed(0)
        count = copies or math.ceil(ROTATED_BYTES / (2 * shape.n * shape.k))
        self.weights = [self._normal(shape.n, shape.k, shape.k**-0.5) for _ in range(count)]
        self.residual = self._normal(case.rows, shape.k)
        self.delta = self._normal(case.rows, shape.k)
        self._sum = self.residual.clone()  # the norm's kernel adds to it in place
        self.norm_weight = (torch.rand(shape.k, device=device, generator=self.generator) + 0.5).bfloat16().float()

    def product(self, candidate: Candidate) -> Callable[[Tensor], Tensor]:
        """The whole case. Behind a norm's kernel, its first call after reset() has the case's inputs."""
        op, config = candidate.op, candidate.config
        if op in ("norm_linear", "norm_gate_up"):
            fused = skinny_norm_linear if op == "norm_linear" else skinny_norm_gate_up
            return lambda weight: fused(self.delta, self.residual, self.norm_weight, EPS, weight, config)[0]
        plain = skinny_linear if op == "linear" else skinny_gate_up
        return lambda weight: plain(self._normed(), weight, config)

    def cublas(self, weight: Tensor) -> Tensor:
        """The case by the library, with kernels of ours before and after it."""
        y = F.linear(self._normed(), weight)
        return silu_and_mul(y) if self.case.shape.op == "norm_gate_up" else y

    def reset(self) -> None:
        self._sum.copy_(self.residual)

    def _normed(self) -> Tensor:
        """What the product reads."""
        if self.case.shape.op == "linear":
            return self.residual
        return add_rms_norm(self.delta, self._sum, self.norm_weight, EPS)[0]

    def unfused(self, dtype: torch.dtype) -> Tensor:
        """The case by torch's own operations, rounded to `dtype` after each."""
        x, weight = self.residual, self.weights[0].to(dtype)
        if self.case.shape.op == "linear":
            return F.linear(x.to(dtype), weight)
        h = (x + self.delta).to(dtype)
        y = F.linear(F.rms_norm(h, (h.shape[1],), self.norm_weight.to(dtype), EPS), weight)
        if self.case.shape.op == "norm_linear":
            return y
        gate, up = y.chunk(2, -1)
        return F.silu(gate) * up

    def _normal(self, rows: int, columns: int, size: float = 1.0) -> Tensor:
        values = torch.empty(rows, columns, dtype=torch.bfloat16, device="cuda")
        return values.normal_(0, size, generator=self.generator)


def compile_candidate(case: Case, candidate: Candidate) -> bool:
    """Runs one once, in a process of its own, so that it lies compiled in the cache on disk; False: too large."""
    try:
        problem = Problem(case, copies=1)
        problem.product(candidate)(problem.weights[0])
        torch.cuda.synchronize()
    except OutOfResources:
        return False
    return True


def relative_error(values: Tensor, exact: Tensor) -> float:
    return float((values.double() - exact).norm() / exact.norm())


@triton.jit
def _gap(out, steps, PDL: tl.constexpr):  # type: ignore[no-untyped-def]
    """A program that only computes, for a while."""
    let_next_start(PDL)
    wait_for_inputs(PDL)
    value = 1.0
    for _ in range(steps):
        value = value * 0.999 + 0.5
    tl.store(out, value)


class Stopwatch:
    """Seconds of functions of a weight, per launch, in a CUDA graph."""

    def __init__(self) -> None:
        self._out = torch.zeros(1, device="cuda")
        self._gap_us = 0.0
        self._gap_us = self._us(lambda _: self.gap(), [self._out])

    def gap(self) -> None:
        _gap[(1,)](self._out, GAP_STEPS, num_warps=1, **launch_options(self._out.device))

    def us(self, problem: Problem, function: Callable[[Tensor], Tensor]) -> float:
        if not problem.case.shape.after_attention:
            return self._us(function, problem.weights)

        def behind_gap(weight: Tensor) -> None:
            self.gap()
            function(weight)

        return self._us(behind_gap, problem.weights) - self._gap_us

    def _us(self, function: Callable[[Tensor], object], weights: list[Tensor]) -> float:
        rounds = math.ceil(MIN_LAUNCHES / len(weights))
        function(weights[0])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(rounds):
                for weight in weights:
                    function(weight)
        times = []
        for _ in range(REPLAYS + 1):  # the first one warms up
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        return min(times[1:]) * 1000 / (rounds * len(weights))


class Tuner:
    """Compiles in many processes, then times in this one, so that neither disturbs the other."""

    def __init__(self, pool: ProcessPoolExecutor, deadline: float) -> None:
        self._pool = pool
        self._deadline = deadline
        self._processors = num_multiprocessors(torch.device("cuda", torch.cuda.current_device()))
        self._stopwatch = Stopwatch()

    def tune(self, cases: list[Case], one_row: dict[Shape, SkinnyConfig]) -> Iterator[Result]:
        """Stops before a case that would begin after the deadline."""
        first = self._compile({case: first_candidates(case, self._processors) for case in cases})
        timings: dict[Case, list[Timing]] = {}
        cublas_us: dict[Case, float] = {}
        for case, candidates in first.items():
            if time.monotonic() > self._deadline:
                break
            problem = Problem(case)
            cublas_us[case] = self._stopwatch.us(problem, problem.cublas)
            timings[case] = self._times(problem, candidates)
        more = {case: next_candidates(case, done) for case, done in timings.items()}
        for case in more:
            family = one_row.get(case.shape)
            same = None if family is None else Candidate(case.shape.op, family)
            if same is not None and case.rows <= 4 and same not in {t.candidate for t in timings[case]}:
                more[case].append(same)
        for case, candidates in self._compile(more).items():
            timings[case] += self._times(Problem(case), candidates)
            if timings[case]:
                yield Result(case, tuple(ranked(timings[case], one_row.get(case.shape))), cublas_us[case])

    def _compile(self, wanted: dict[Case, list[Candidate]]) -> dict[Case, list[Candidate]]:
        """Those that fit the device."""
        pairs = [(case, candidate) for case, candidates in wanted.items() for candidate in candidates]
        fits = self._pool.map(compile_candidate, *zip(*pairs, strict=True)) if pairs else ()
        fitting = {pair for pair, fit in zip(pairs, fits, strict=True) if fit}
        return {case: [c for c in candidates if (case, c) in fitting] for case, candidates in wanted.items()}

    def _times(self, problem: Problem, candidates: list[Candidate]) -> list[Timing]:
        exact = problem.unfused(torch.float64)
        limit = 2 * relative_error(problem.unfused(torch.bfloat16), exact)
        timings = []
        for candidate in candidates:
            function = problem.product(candidate)
            problem.reset()
            error = relative_error(function(problem.weights[0]), exact)
            if not error <= limit:
                print(f"WRONG: {problem.case} {candidate}: error {error:.2e}, limit {limit:.2e}")
                continue
            timings.append(Timing(candidate, self._stopwatch.us(problem, function)))
        return timings


def ranked(timings: list[Timing], one_row: SkinnyConfig | None) -> list[Timing]:
    """The fastest first; of those about as fast, one whose rows get the bits of the config for one row."""
    by_time = sorted(timings, key=lambda t: t.us)
    same = [t for t in by_time if one_row is not None and order_of_sums(t.config) == order_of_sums(one_row)]
    first = [t for t in same if t.us <= SAME_BITS_GAIN * by_time[0].us][:1]
    return first + [t for t in by_time if t not in first]


def order_of_sums(config: SkinnyConfig) -> tuple[object, ...]:
    return config.kind, config.block_k, config.num_warps, config.split_k


def read_entries(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text("utf-8"))["entries"]) if path.is_file() else []


def merge(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By op, shape and rows; a newer entry replaces an older one."""
    keys = ("op", "n", "k", "rows")
    by_key = {tuple(entry[key] for key in keys): entry for entry in (*old, *new)}
    return [by_key[key] for key in sorted(by_key)]


def write_table(path: Path, device: str, entries: list[dict[str, Any]]) -> None:
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"device": {json.dumps(device)}, "entries": [\n{lines}\n]}}\n', "utf-8")


def describe(result: Result) -> str:
    """A line for each of the best."""
    shape = result.case.shape
    what = f"{shape.model} {shape.name} {shape.n}x{shape.k}"
    return "\n".join(
        f"{what:24} {result.case.rows:3} {timing.candidate.op:12} {describe_config(timing.config):30} {timing.us:8.2f} "
        f"{2e-6 * shape.n * shape.k / timing.us:6.2f} {result.cublas_us:8.2f}"
        for timing in result.timings[:PRINTED]
    )


def describe_config(config: SkinnyConfig) -> str:
    how = f"{config.kind} n{config.block_n} k{config.block_k} w{config.num_warps} s{config.num_stages}"
    return how + (f" split{config.split_k}" if config.split_k > 1 else "") + (" pf" if config.prefetch else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", choices=ROW_BUCKETS, default=ROW_BUCKETS)
    parser.add_argument("--only", choices=sorted({shape.model for shape in SHAPES}), help="the shapes of one model")
    parser.add_argument("--ops", nargs="+", choices=get_args(Op), help="cases of these, alone or behind a norm")
    parser.add_argument("--output", type=Path, help="the table to write or add to; default: the package's own")
    parser.add_argument("--seconds", type=float, default=240.0, help="start no case after so long")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("tune_skinny.py measures a GPU, and there is none: torch.cuda.is_available() is false")
    device = torch.cuda.get_device_name()
    with ProcessPoolExecutor(min(16, os.cpu_count() or 1), get_context("spawn")) as pool:
        deadline = time.monotonic() + options.seconds
        groups = ordered_groups(options.only, options.rows, options.ops)
        tune_groups(Tuner(pool, deadline), groups, deadline, device, options.output or TABLES / table_name(device))
    return 0


def tune_groups(tuner: Tuner, groups: list[list[Case]], deadline: float, device: str, output: Path) -> None:
    """Prints the results and adds them to the table, group after group."""
    entries = read_entries(output)
    one_row: dict[Shape, SkinnyConfig] = {}
    print(f"{'shape':24} {'M':>3} {'op':12} {'config':30} {'us':>8} {'TB/s':>6} {'cuBLAS':>8}")
    for cases in groups:
        if time.monotonic() > deadline:
            print(f"out of time before {cases[0].shape.model} with {cases[0].rows} rows")
            break
        for result in tuner.tune(cases, one_row):
            print(describe(result), flush=True)
            entries = merge(entries, result.entries)
            one = result.best(result.case.shape.op)
            if result.case.rows == 1 and one is not None:
                one_row[result.case.shape] = one.config
        write_table(output, device, entries)


if __name__ == "__main__":
    sys.exit(main())
