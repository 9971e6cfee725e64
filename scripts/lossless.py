"""Answers with speculation must equal answers without it, token for token, in fp32: the whole table, or one cell.

    python scripts/lossless.py --jobs 16        every cell with 100 prompts on the embedded pair, 16 cores at once
    python scripts/lossless.py --log FILE       keep the outcome of every cell in FILE, and skip those it has already
    python scripts/lossless.py --list           the cells, without running them

A cell runs its prompts twice on one engine: with an empty prefix cache, and then with what the first run left there.
Its prompts take turns in how many drafts of a step are accepted at most: as many as are right, 0, 1, ... up to K. In
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
NEW_TOKENS = 12
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
    """One way to serve."""

    pair: str
    depth: int
    topk: int
    page_size: int
    chunk: int
    batch: int
    sampled: bool
    disturbed: bool

    @property
    def name(self) -> str:
        shape = "chain" if self.topk == 1 else f"tree of {self.topk}"
        return (
            f"{self.pair}, K {self.depth} {shape}, page {self.page_size}, chunk {self.chunk}, "
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
    """Pair x K x chain or tree x page size x chunk size x batch x sampling; half of the cells are disturbed."""
    values = itertools.product(pairs, (1, 3, 5), (1, 3), (1, 16), (16, 512), (1, 16), (False, True))
    return [Cell(*value, disturbed=index.bit_count() % 2 == 1) for index, value in enumerate(values)]


def cap(index: int, depth: int) -> int | None:
    """Most drafts of a step that are accepted for prompt `index`; None: as many as are right.

    >>> [cap(index, depth=1) for index in range(4)]
    [None, 0, 1, None]
    """
    return (None, *range(depth + 1))[index % (depth + 2)]


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
            prompts.append(source[begin : begin + 40 + 7 * index % 160])
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
                _check_cap(answer, cap(index, cell.depth))
                if answer.token_ids != wanted:
                    position = _first_difference(answer.token_ids, wanted)
                    mismatches.append(Mismatch(cell, index, was_cached, position, wanted, answer.token_ids))
                if answer.drafts is not None:
                    drafted += answer.drafts.num_verify
                    accepted += answer.drafts.num_accepted
    return mismatches, 1 + accepted / drafted if drafted else 1.0


def _check_cap(answer: Any, most: int | None) -> None:
    """A cell in which caps did nothing would prove less than it says."""
    if answer.drafts is not None and most is not None and any(answer.drafts.accepted[most + 1 :]):
        raise AssertionError(f"a cap of {most}, but accepted were {answer.drafts.accepted}")


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
        if (most := cap(index, cell.depth)) is not None:
            values["accept_cap"] = most
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
            await asyncio.sleep(0.03)

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


def _take_core(cores: Any) -> None:
    """Stay on one core: threads that wait for each other while other cells have the cores would take many times longer.

    The worker uses as many threads as it has cores.
    """
    os.sched_setaffinity(0, {cores.get()})


def _run_one(cell: Cell, num_prompts: int, expected: Sequence[list[int]]) -> tuple[list[Mismatch], float]:
    return run_cell(cell, text_prompts(num_prompts), expected)


@dataclass(frozen=True)
class Outcome:
    """One line of a log."""

    cell: str
    num_answers: int
    mismatches: list[dict[str, Any]]
    acceptance_length: float


def run_cells(cells: Sequence[Cell], num_prompts: int, jobs: int) -> Iterator[Outcome]:
    """Every cell on the embedded pair, in the order in which they end."""
    prompts = text_prompts(num_prompts)
    expected = {sampled: plain_answers(None, prompts, sampled) for sampled in {cell.sampled for cell in cells}}
    spawn = multiprocessing.get_context("spawn")
    cores = spawn.Manager().Queue()
    usable = sorted(os.sched_getaffinity(0))
    for job in range(jobs):
        cores.put(usable[job % len(usable)])
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_take_core, initargs=(cores,)) as pool:
        futures = {pool.submit(_run_one, cell, num_prompts, expected[cell.sampled]): cell for cell in cells}
        for future in as_completed(futures):
            mismatches, length = future.result()
            found = [dataclasses.asdict(mismatch) for mismatch in mismatches]
            yield Outcome(futures[future].name, 2 * num_prompts, found, length)


def read_log(path: Path | None) -> list[Outcome]:
    """The outcomes in a log, which need not exist yet."""
    if path is None or not path.exists():
        return []
    return [Outcome(**json.loads(line)) for line in path.read_text().splitlines()]


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
    parser.add_argument("--log", type=Path, metavar="FILE", help="append outcomes here; cells that it has are skipped")
    parser.add_argument("--list", action="store_true", help="print the cells and stop")
    parser.add_argument("--record", type=Path, metavar="FILE", help="append the outcome to this file of results")
    args = parser.parse_args()
    cells = sorted(table(), key=lambda cell: cell.batch)  # the slowest first
    if args.list:
        print(*(cell.name for cell in cells), sep="\n")
        return 0
    outcomes = read_log(args.log)
    done = {outcome.cell for outcome in outcomes}
    started = time.monotonic()
    for outcome in run_cells([cell for cell in cells if cell.name not in done], args.prompts, args.jobs):
        outcomes.append(outcome)
        if args.log is not None:
            with args.log.open("a") as file:
                file.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
        minutes = (time.monotonic() - started) / 60
        print(f"{len(outcomes)}/{len(cells)} {minutes:.1f} min: {outcome.cell}: acceptance length "
              f"{outcome.acceptance_length:.2f}, {len(outcome.mismatches)} differ", flush=True)  # fmt: skip
    compared = sum(outcome.num_answers for outcome in outcomes)
    differ = sum(len(outcome.mismatches) for outcome in outcomes)
    print(f"{len(outcomes)} cells, {compared} answers compared, {differ} differ")
    if args.record is not None:
        _record(args.record, sys.argv[1:], len(outcomes), compared, differ)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
