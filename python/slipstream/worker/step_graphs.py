"""The CUDA graphs of a worker: which steps have one, how they are captured, and which graph a step takes."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from slipstream.errors import ConfigError
from slipstream.log import get_logger
from slipstream.worker.borrowed import borrowed
from slipstream.worker.decode_program import DecodeProgram
from slipstream.worker.device_parts import DeviceParts
from slipstream.worker.naming import naming
from slipstream.worker.prefill_program import PrefillProgram, PrefillShape

logger = get_logger(__name__)

_SMALL_BATCHES = (1, 2, 4, 8, 16, 24, 32, 48)
_PREFILL_ROWS = (32, 64, 128, 256, 512, 1024)
_MAX_PREFILL_REQUESTS = 64


@dataclass(frozen=True)
class DecodeKey:
    """See DecodeProgram."""

    batch: int
    depth: int
    extends: bool


@dataclass(frozen=True)
class PrefillKey:
    """See PrefillProgram."""

    shape: PrefillShape
    extends: bool


def batch_buckets(most: int) -> list[int]:
    """Sizes of batches that have a graph; a batch between two of them takes the larger one.

    >>> batch_buckets(40)
    [1, 2, 4, 8, 16, 24, 32, 40]
    >>> batch_buckets(256)[-5:]
    [128, 160, 192, 224, 256]
    """
    sizes = [*_SMALL_BATCHES, *range(64, most + 1, 32)]
    return sorted({size for size in sizes if size < most} | {most}) if most else []


def prefill_buckets(most_rows: int, most_requests: int) -> list[PrefillShape]:
    """Shapes of prefill steps that have a graph.

    >>> [shape.num_rows for shape in prefill_buckets(512, 8)]
    [32, 64, 128, 256, 512]
    """
    requests = min(_MAX_PREFILL_REQUESTS, most_requests)
    return [PrefillShape(rows, min(rows, requests)) for rows in _PREFILL_ROWS if rows <= most_rows]


@dataclass(frozen=True)
class DecodeRun:
    """A program, and what runs its two segments: after forward() comes tail(), or what the host does in its place."""

    program: DecodeProgram
    forward: Callable[[], None]
    tail: Callable[[], None]


class StepGraphs:
    """Programs with their graphs, in one pool of memory: they run one after the other."""

    def __init__(self, parts: DeviceParts) -> None:
        self._parts = parts
        self._decode: dict[DecodeKey, DecodeRun] = {}
        self._prefill: dict[PrefillKey, tuple[PrefillProgram, Any]] = {}
        self._batches: list[int] = []
        self._depths: list[int] = []
        self._shapes: list[PrefillShape] = []

    @torch.inference_mode()
    def capture(
        self,
        batches: Sequence[int],
        depths: Sequence[int],
        shapes: Sequence[PrefillShape],
        progress: Callable[[int, int], None],
    ) -> None:
        """One graph for each combination. `depths` are the numbers of drafts, 0 among them. The largest come first:
        what they needed is enough for the others. Raises ConfigError that names the step which failed.
        """
        started = time.perf_counter()
        self._batches, self._depths, self._shapes = sorted(batches), sorted(depths), list(shapes)
        decode_keys = list(decode_keys_of(batches, depths, has_chain=self._parts.chain is not None))
        chains = [False] if self._parts.chain is None else [False, True]
        prefill_keys = [PrefillKey(shape, extends) for shape in reversed(shapes) for extends in chains]
        total, pool = len(decode_keys) + len(prefill_keys), torch.cuda.graph_pool_handle()
        before = torch.cuda.memory_reserved()
        for done, key in enumerate(prefill_keys):
            prefill = PrefillProgram(self._parts, key.shape, key.extends)
            prefill.load([], {})
            _warm_up(prefill.run, str(key))
            self._prefill[key] = prefill, _capture(prefill.run, pool, str(key))
            progress(done + 1, total)
        for done, decode_key in enumerate(decode_keys, start=len(prefill_keys)):
            decode = DecodeProgram(self._parts, decode_key.batch, decode_key.depth, decode_key.extends)
            self._decode[decode_key] = _capture_decode(decode, pool, str(decode_key))
            progress(done + 1, total)
        grown = (torch.cuda.memory_reserved() - before) / 2**30
        elapsed_s = time.perf_counter() - started
        logger.info("captured %d CUDA graphs in %.1f s, with %.2f GiB of memory", total, elapsed_s, grown)

    def decode(self, batch: int, depth: int, extends: bool) -> DecodeRun:
        """For at least so many slots and drafts."""
        size = next((each for each in self._batches if each >= batch), None)
        drafts = next((each for each in self._depths if each >= depth), None)
        if size is not None and drafts is not None:
            return self._decode[DecodeKey(size, drafts, extends or drafts > 0)]
        fresh = DecodeProgram(self._parts, batch, depth, extends)
        return DecodeRun(fresh, fresh.forward, fresh.tail)

    def prefill(self, shape: PrefillShape, extends: bool) -> tuple[PrefillProgram, Callable[[], None] | None]:
        """A program for at least that shape, and what runs it; None: it has no graph, and run() may be planned on the
        host.
        """
        found = next((each for each in self._shapes if each.holds(shape)), None)
        if found is None:
            return PrefillProgram(self._parts, shape.padded, extends), None
        program, graph = self._prefill[PrefillKey(found, extends)]
        return program, graph.replay


def decode_keys_of(batches: Iterable[int], depths: Iterable[int], *, has_chain: bool) -> list[DecodeKey]:
    """The largest first. Where nobody has drafts the draft may still have to follow, or not.

    >>> decode_keys_of([1, 2], [0, 3], has_chain=True)[:3]  # doctest: +NORMALIZE_WHITESPACE
    [DecodeKey(batch=2, depth=3, extends=True), DecodeKey(batch=2, depth=0, extends=True),
     DecodeKey(batch=2, depth=0, extends=False)]
    """
    keys = []
    for batch in sorted(batches, reverse=True):
        for depth in sorted(depths, reverse=True):
            if depth or has_chain:
                keys.append(DecodeKey(batch, depth, True))
            if not depth:
                keys.append(DecodeKey(batch, 0, False))
    return keys


def _capture_decode(program: DecodeProgram, pool: Any, name: str) -> DecodeRun:
    _warm_up(program.run, name)
    forward = _capture(program.forward, pool, name)
    tail = _capture(program.tail, pool, name)
    program.drafts, program.hidden = borrowed(program.drafts), borrowed(program.hidden)
    return DecodeRun(program, forward.replay, tail.replay)


def _warm_up(launch: Callable[[], None], name: str) -> None:
    """Compile the kernels: that is not possible during a capture."""
    with _naming(name):
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            launch()
        torch.cuda.current_stream().wait_stream(side)


def _capture(launch: Callable[[], None], pool: Any, name: str) -> Any:
    graph = torch.cuda.CUDAGraph()
    with _naming(name), torch.cuda.graph(graph, pool=pool):
        launch()
    return graph


def _naming(name: str) -> AbstractContextManager[None]:
    flags = "--mem-fraction-static, --cuda-graph-max-bs or --max-running-requests"
    return naming(f"the CUDA graph of {name}", flags, ConfigError)
