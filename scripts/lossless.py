"""Answers with speculation must equal answers without it, token for token, in fp32: the whole table, or one cell.

    python scripts/lossless.py                 every cell with 100 prompts on the embedded pair; hours on one core
    python scripts/lossless.py --jobs 16       the same on 16 cores
    python scripts/lossless.py --list          the cells, without running them

A cell runs its prompts twice on one engine: with an empty prefix cache, and then with what the first run left there. In
half of the cells other requests are aborted at random moments meanwhile, and the KV pool is so small that requests are
preempted. What is compared with was answered by an engine without a draft, with other page and chunk sizes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import random
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
NEW_TOKENS = 24
Prompt = str | list[int] | list[dict[str, str]]

NAMES = (
    "textwrap.dedent", "os.path.join", "json.dumps", "shutil.copytree", "itertools.chain", "functools.partial",
    "re.compile", "collections.Counter", "random.choice", "math.gcd", "pathlib.Path", "string.Template",
    "heapq.merge", "bisect.insort", "csv.reader", "glob.glob", "time.sleep", "logging.getLogger", "threading.Lock",
    "socket.socket", "argparse.ArgumentParser", "copy.deepcopy", "inspect.signature", "types.SimpleNamespace",
    "tempfile.mkdtemp",
)  # fmt: skip
SOURCES = ("textwrap", "json.decoder", "heapq", "bisect", "shlex")


@dataclass(frozen=True)
class Cell:
    """One way to serve. `cap`: drafts accepted in one step at most, None: as the target decides."""

    pair: str
    depth: int
    topk: int
    page_size: int
    chunk: int
    cap: int | None
    batch: int
    sampled: bool
    disturbed: bool

    @property
    def name(self) -> str:
        shape = "chain" if self.topk == 1 else f"tree of {self.topk}"
        return (
            f"{self.pair}, K {self.depth} {shape}, page {self.page_size}, chunk {self.chunk}, cap {self.cap}, "
            f"batch {self.batch}, {'sampled' if self.sampled else 'greedy'}{', disturbed' if self.disturbed else ''}"
        )


@dataclass(frozen=True)
class Mismatch:
    """An answer that differs. `position` is that of the first token that does."""

    cell: Cell
    prompt: int
    was_cached: bool
    position: int
    expected: list[int]
    found: list[int]


def table(pairs: Sequence[str] = ("embedded",)) -> list[Cell]:
    """Pair x K x chain or tree x page size x chunk size x cap x batch x sampling; half of the cells are disturbed."""
    cells = []
    for pair, depth, topk, page_size, chunk, batch, sampled in itertools.product(
        pairs, (1, 3, 5), (1, 3), (1, 16), (8, 512), (1, 16), (False, True)
    ):
        for cap in (*range(depth), None):
            cells.append(Cell(pair, depth, topk, page_size, chunk, cap, batch, sampled, len(cells) % 2 == 1))
    return cells


def pairwise_cover(cells: Sequence[Cell], seed: int, limit: int) -> list[Cell]:
    """At most `limit` cells in which as many pairs of values as possible occur together: greedy, in a seeded order."""
    rng = random.Random(seed)
    rest = list(cells)
    rng.shuffle(rest)
    covered: set[Any] = set()
    chosen: list[Cell] = []
    while len(chosen) < limit:
        best = max(rest, key=lambda cell: len(_pairs(cell) - covered))
        if not _pairs(best) - covered:
            break
        covered |= _pairs(best)
        chosen.append(best)
    return chosen


def _pairs(cell: Cell) -> set[Any]:
    values = [(field.name, getattr(cell, field.name)) for field in dataclasses.fields(cell)]
    return set(itertools.combinations(values, 2))


def text_prompts(count: int) -> list[Prompt]:
    """Questions about the standard library and beginnings of its sources, alternating."""
    import importlib.util

    sources = []
    for name in SOURCES:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        sources.append(Path(spec.origin).read_text(encoding="utf-8"))
    prompts: list[Prompt] = []
    for index in range(count):
        name, source = NAMES[(index // 2) % len(NAMES)], sources[(index // 2) % len(sources)]
        if index % 2:
            begin = 97 * index % max(len(source) - 400, 1)
            prompts.append(source[begin : begin + 60 + 7 * index % 300])
        else:
            question = ("What does {} do?", "Explain {}.", "What is {}?")[index // 2 // len(NAMES) % 3]
            prompts.append([{"role": "user", "content": question.format(name)}])
    return prompts


def sampling(index: int, sampled: bool) -> dict[str, Any]:
    """Sampling parameters of prompt `index`: greedy, or all features by turns and together."""
    common: dict[str, Any] = {"max_new_tokens": NEW_TOKENS - index % 5, "ignore_eos": index % 3 == 0}
    if not sampled:
        return common | {"temperature": 0}
    features: list[dict[str, Any]] = [
        {"top_k": 20},
        {"top_p": 0.8},
        {"min_p": 0.05},
        {"repetition_penalty": 1.2},
        {"presence_penalty": 0.4, "frequency_penalty": 0.3},
        {"logit_bias": {str(70 + index): 4.0, "100": -5.0}},
    ]
    chosen = features[index % 7 : index % 7 + 1] or features  # every seventh has them all
    values = common | {"temperature": 1.0, "sampling_seed": 1000 + index}
    for feature in chosen:
        values |= feature
    return values


def plain_answers(model: str | None, prompts: Sequence[Prompt], sampled: bool) -> list[list[int]]:
    """What an engine without a draft answers."""
    from slipstream import Engine

    options = {"speculative_algorithm": "none", "dtype": "float32", "random_seed": 0, "max_running_requests": 8}
    with Engine(model, **options) as engine:
        return [engine.generate(prompt, sampling(index, sampled))[0].token_ids for index, prompt in enumerate(prompts)]


def run_cell(
    cell: Cell,
    prompts: Sequence[Prompt],
    expected: Sequence[list[int]],
    model: str | None = None,
    draft: str | None = None,
) -> tuple[list[Mismatch], float]:
    """Serve the prompts as the cell says; returns what differs and the acceptance length."""
    from slipstream import Engine

    with Engine(model, **_options(cell, draft)) as engine:
        mismatches: list[Mismatch] = []
        drafted = accepted = 0
        for was_cached in (False, True):
            with _aborted_requests(engine, prompts) if cell.disturbed else contextlib.nullcontext():
                answers = _answers(engine, cell, prompts)
            for index, (answer, wanted) in enumerate(zip(answers, expected, strict=True)):
                if answer.token_ids != wanted:
                    position = _first_difference(answer.token_ids, wanted)
                    mismatches.append(Mismatch(cell, index, was_cached, position, wanted, answer.token_ids))
                if answer.drafts is not None:
                    drafted += answer.drafts.num_verify
                    accepted += answer.drafts.num_accepted
    return mismatches, 1 + accepted / drafted if drafted else 1.0


def _options(cell: Cell, draft: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "dtype": "float32",
        "random_seed": 0,
        "page_size": cell.page_size,
        "chunked_prefill_size": cell.chunk,
        "max_running_requests": cell.batch,
        "speculative_num_steps": cell.depth,
        "speculative_eagle_topk": cell.topk,
        "speculative_adaptive": "off",
    }
    if cell.topk > 1:
        options["speculative_num_draft_tokens"] = 1 + cell.topk + 2 * (cell.depth - 1)
    if draft is not None:
        options["speculative_draft_model_path"] = draft
    if cell.disturbed:
        options["max_total_tokens"] = 1024 if cell.batch > 1 else 512
    return options


def _answers(engine: Any, cell: Cell, prompts: Sequence[Prompt]) -> list[Any]:
    def answer(index: int) -> Any:
        values = sampling(index, cell.sampled)
        if cell.cap is not None:
            values["accept_cap"] = cell.cap
        return engine.generate(prompts[index], values)[0]

    with ThreadPoolExecutor(cell.batch) as pool:
        return list(pool.map(answer, range(len(prompts))))


@contextlib.contextmanager
def _aborted_requests(engine: Any, prompts: Sequence[Prompt]) -> Iterator[None]:
    """One more request at a time, each aborted after a random number of outputs."""
    stopped = threading.Event()

    async def disturb() -> None:
        rng = random.Random(0)
        while not stopped.is_set():
            seen, enough = 0, rng.randrange(8)
            stream = engine.stream(rng.choice(prompts), {"max_new_tokens": 64, "temperature": 0, "ignore_eos": True})
            async for _ in stream:
                seen += 1
                if seen > enough:
                    break
            await stream.aclose()
            await asyncio.sleep(0.002)

    thread = threading.Thread(target=lambda: asyncio.run(disturb()))
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _first_difference(found: Sequence[int], expected: Sequence[int]) -> int:
    for position, (one, other) in enumerate(zip(found, expected, strict=False)):
        if one != other:
            return position
    return min(len(found), len(expected))


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _run_one(cell: Cell, num_prompts: int, expected: Sequence[list[int]]) -> tuple[Cell, list[Mismatch], float]:
    return cell, *run_cell(cell, text_prompts(num_prompts), expected)


def run_table(cells: Iterable[Cell], num_prompts: int, jobs: int) -> tuple[list[Mismatch], int]:
    """Every cell on the embedded pair; returns what differs and how many answers were compared."""
    os.environ["OMP_NUM_THREADS"] = "1"
    cells = list(cells)
    prompts = text_prompts(num_prompts)
    expected = {sampled: plain_answers(None, prompts, sampled) for sampled in {cell.sampled for cell in cells}}
    mismatches: list[Mismatch] = []
    started = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_one_thread) as pool:
        futures = [pool.submit(_run_one, cell, num_prompts, expected[cell.sampled]) for cell in cells]
        for done, future in enumerate(as_completed(futures), start=1):
            cell, found, length = future.result()
            mismatches += found
            for mismatch in found:
                print(f"DIFFERS {json.dumps(dataclasses.asdict(mismatch))}", flush=True)
            minutes = (time.monotonic() - started) / 60
            print(f"{done}/{len(cells)} {minutes:.1f} min: {cell.name}: acceptance length {length:.2f}", flush=True)
    return mismatches, 2 * num_prompts * len(cells)


def _record(path: Path, arguments: Sequence[str], num_cells: int, compared: int, differ: int) -> None:
    from slipstream.bench import results

    found = results.Result(
        date=results.today(),
        commit=results.current_commit(REPOSITORY),
        machine=results.this_machine(),
        command=results.command_line("python scripts/lossless.py", arguments),
        case=f"answers that differ with speculation, fp32, of {compared:,} in {num_cells} cells",
        value=float(differ),
        unit="answers",
        compared_with="the same engine without a draft",
        target="<= 0",
    )
    results.append(path, [found])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100, help="of each cell")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once, one core each")
    parser.add_argument("--every", type=int, default=1, help="only every n-th cell")
    parser.add_argument("--list", action="store_true", help="print the cells and stop")
    parser.add_argument("--record", type=Path, metavar="FILE", help="append the outcome to this file of results")
    args = parser.parse_args()
    cells = table()[:: args.every]
    if args.list:
        print(*(cell.name for cell in cells), sep="\n")
        return 0
    mismatches, compared = run_table(cells, args.prompts, args.jobs)
    print(f"{len(cells)} cells, {compared} answers compared, {len(mismatches)} differ")
    if args.record is not None:
        _record(args.record, sys.argv[1:], len(cells), compared, len(mismatches))
    return 1 if mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
