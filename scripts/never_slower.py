"""Speculation must not be slower than none, even where no draft is ever right: measured end to end.

    python scripts/never_slower.py                          16 requests at once
    python scripts/never_slower.py --concurrency 1 4 16     each of these
    python scripts/never_slower.py --record FILE            keep the figures

Two servers of the embedded pair, one as served by default and one without a draft, answer the same requests in turns.
First no draft is accepted, from the start of the server on; then the target decides; then none is accepted again.
Servers are started anew for each round: where its weights come to lie in memory makes one process some per cent faster
than another that does the same.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from slipstream.bench import library_text, results
from slipstream.bench.own_server import OwnServer
from slipstream.bench.speculative import plain_options
from slipstream.config.options import LaunchOptions

REPOSITORY = Path(__file__).resolve().parent.parent
TARGET = ">= 0.97"
PHASES: tuple[tuple[str, int | None], ...] = (("no draft accepted", 0), ("accepted again", None), ("none again", 0))
LENGTHS = (96, 160)  # tokens of an answer
REQUESTS_PER_TURN = 2  # for each place
MIN_REQUESTS_PER_TURN = 8
POLL_S = 0.5  # the scheduler tells its depth no oftener


@dataclass(frozen=True)
class Request:
    prompt: list[int]
    sampling: dict[str, Any]


@dataclass
class Phase:
    """Turns of one kind of traffic. Seconds of each turn at both servers; `depths` are K and when it was seen, in
    seconds of traffic at the server with drafts since the phase began.
    """

    name: str
    concurrency: int
    round: int
    tokens: list[int] = field(default_factory=list)
    drafting_s: list[float] = field(default_factory=list)
    plain_s: list[float] = field(default_factory=list)
    depths: list[tuple[float, int]] = field(default_factory=list)
    load: list[float] = field(default_factory=list)  # average of a minute, before each turn

    @property
    def ratio(self) -> float:
        """Tokens per second over those of the server without a draft; both answer the same requests."""
        return sum(self.plain_s) / sum(self.drafting_s)

    @property
    def turn_ratios(self) -> list[float]:
        return [plain / drafting for plain, drafting in zip(self.plain_s, self.drafting_s, strict=True)]


def settled_s(depths: Sequence[tuple[float, int]], drafts: bool, share: float = 0.9) -> float | None:
    """When K became more than 0, or 0, and stayed so for `share` of the time that was left; None: never.

    >>> settled_s([(0.5, 3), (1.0, 0), (1.5, 0), (2.0, 0)], drafts=False), settled_s([(0.5, 3)], drafts=False)
    (1.0, None)
    """
    for index, (seen_s, depth) in enumerate(depths):
        rest = [(later > 0) == drafts for _, later in depths[index:]]
        if (depth > 0) == drafts and sum(rest) >= share * len(rest):
            return seen_s
    return None


def recovered_s(turns_s: Sequence[float], ratios: Sequence[float], share: float = 0.95) -> float:
    """Seconds of traffic until the end of the first turn that is nearly as good as the later half of all turns are.

    >>> recovered_s([4.0, 3.0, 2.0, 2.0], [1.0, 1.4, 2.0, 2.0])
    9.0
    """
    final = statistics.median(ratios[len(ratios) // 2 :])
    ends = zip(itertools.accumulate(turns_s), ratios, strict=True)
    return next(ended_s for ended_s, ratio in ends if ratio >= share * final)


def requests_of(turn: int, prompts: Sequence[list[int]], count: int, cap: int | None) -> list[Request]:
    """The requests of a turn, the same for both servers; each turn has other ones."""
    rng = random.Random(turn)
    sampling: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
    if cap is not None:
        sampling["accept_cap"] = cap
    return [Request(rng.choice(prompts), sampling | {"max_new_tokens": rng.randint(*LENGTHS)}) for _ in range(count)]


async def run_turn(client: httpx.AsyncClient, requests: Sequence[Request], concurrency: int) -> tuple[int, float]:
    """Tokens generated, and seconds."""
    places = asyncio.Semaphore(concurrency)

    async def run(request: Request) -> int:
        async with places:
            body = {"input_ids": request.prompt, "sampling_params": request.sampling}
            answer = (await client.post("/generate", json=body)).raise_for_status().json()
            return int(answer["meta_info"]["completion_tokens"])

    started_s = time.perf_counter()
    counts = await asyncio.gather(*(run(request) for request in requests))
    return sum(counts), time.perf_counter() - started_s


async def watch_depth(client: httpx.AsyncClient, seen: list[tuple[float, int]], begun_s: float) -> None:
    """Note K until cancelled; seconds are counted on from `begun_s`."""
    started_s = time.perf_counter()
    while True:
        await asyncio.sleep(POLL_S)
        info = (await client.get("/get_server_info")).raise_for_status().json()
        seen.append((begun_s + time.perf_counter() - started_s, info["speculative"]["num_steps_now"]))


async def run_phase(
    phase: Phase, cap: int | None, seconds: float, first_turn: int, drafting: httpx.AsyncClient,
    plain: httpx.AsyncClient, prompts: Sequence[list[int]],
) -> None:  # fmt: skip
    """Turns until the server without a draft has had `seconds` of traffic. Each server is first in half of them."""
    count = max(REQUESTS_PER_TURN * phase.concurrency, MIN_REQUESTS_PER_TURN)
    while sum(phase.plain_s) < seconds:
        turn = first_turn + len(phase.tokens)
        requests = requests_of(turn, prompts, count, cap)
        phase.load.append(os.getloadavg()[0])
        for is_drafting in (turn % 2 == 0, turn % 2 == 1):
            if not is_drafting:
                tokens, duration_s = await run_turn(plain, requests, phase.concurrency)
                phase.plain_s.append(duration_s)
                continue
            watch = asyncio.create_task(watch_depth(drafting, phase.depths, sum(phase.drafting_s)))
            tokens, duration_s = await run_turn(drafting, requests, phase.concurrency)
            watch.cancel()
            phase.drafting_s.append(duration_s)
        phase.tokens.append(tokens)


async def measure(drafting_url: str, plain_url: str, concurrency: int, round_: int, seconds: float) -> list[Phase]:
    """All phases with one number of requests at once. The servers have just been started."""
    phases: list[Phase] = []
    async with (
        httpx.AsyncClient(base_url=drafting_url, timeout=600, trust_env=False) as drafting,
        httpx.AsyncClient(base_url=plain_url, timeout=600, trust_env=False) as plain,
    ):
        prompts = await tokenize(plain, library_text.questions(random.Random(0), 200))
        for name, cap in PHASES:
            phases.append(Phase(name, concurrency, round_))
            first_turn = 1000 * round_ + sum(len(phase.tokens) for phase in phases)
            await run_phase(phases[-1], cap, seconds, first_turn, drafting, plain, prompts)
    return phases


async def tokenize(client: httpx.AsyncClient, questions: Sequence[str]) -> list[list[int]]:
    """The token ids of chats."""
    prompts = []
    for question in questions:
        body = {"messages": [{"role": "user", "content": question}]}
        prompts.append((await client.post("/tokenize", json=body)).raise_for_status().json()["tokens"])
    return prompts


def show(phases: Sequence[Phase]) -> None:
    """Print one table. K is a digit for each half second of traffic."""
    table = Table("at once", "traffic", "tok/s", "without draft", "ratio", "load", "s to K", "each turn", "K")
    for phase in phases:
        tokens = sum(phase.tokens)
        settled = settled_s(phase.depths, drafts=phase.name == PHASES[1][0])
        table.add_row(
            str(phase.concurrency), phase.name, f"{tokens / sum(phase.drafting_s):.0f}",
            f"{tokens / sum(phase.plain_s):.0f}", f"{phase.ratio:.3f}", f"{statistics.mean(phase.load):.1f}",
            "never" if settled is None else f"{settled:.1f}",
            " ".join(f"{ratio:.2f}" for ratio in phase.turn_ratios), "".join(str(depth) for _, depth in phase.depths),
        )  # fmt: skip
    Console().print(table)


def overall_ratio(rounds: Sequence[Phase]) -> float:
    """Of the same phase of several rounds."""
    return sum(sum(phase.plain_s) for phase in rounds) / sum(sum(phase.drafting_s) for phase in rounds)


def same_phases(phases: Sequence[Phase]) -> list[list[Phase]]:
    """The rounds of each phase with each number of requests at once."""
    groups: dict[tuple[int, str], list[Phase]] = {}
    for phase in phases:
        groups.setdefault((phase.concurrency, phase.name), []).append(phase)
    return list(groups.values())


def to_results(phases: Sequence[Phase], arguments: Sequence[str]) -> list[results.Result]:
    """The ratio of every phase over all rounds, and how long drafting took to come back in the slowest of them."""
    found: list[results.Result] = []

    def add(rounds: Sequence[Phase], what: str, value: float, unit: str, target: str | None = None) -> None:
        tokens, plain_s = sum(sum(phase.tokens) for phase in rounds), sum(sum(phase.plain_s) for phase in rounds)
        found.append(
            results.Result(
                date=results.today(),
                commit=results.current_commit(REPOSITORY),
                machine=results.this_machine(),
                command=results.command_line("python scripts/never_slower.py", arguments),
                case=f"never slower, {rounds[0].concurrency} at once, {rounds[0].name}: {what}",
                value=value,
                unit=unit,
                compared_with=f"no draft loaded, same requests in turns: {tokens / plain_s:.1f} tok/s",
                target=target,
                details={
                    "turn_ratios": [phase.turn_ratios for phase in rounds],
                    "num_steps": ["".join(str(depth) for _, depth in phase.depths) for phase in rounds],
                    "load": [round(statistics.mean(phase.load), 1) for phase in rounds],
                },
            )
        )

    for rounds in same_phases(phases):
        add(rounds, "tokens per second", overall_ratio(rounds), "x", TARGET)
        if rounds[0].name == PHASES[1][0]:
            times = [at for phase in rounds if (at := settled_s(phase.depths, drafts=True)) is not None]
            if len(times) == len(rounds):
                add(rounds, "traffic until K is above 0", max(times), "s")
            full = max(recovered_s(phase.drafting_s, phase.turn_ratios) for phase in rounds)
            add(rounds, "traffic until full speed", full, "s")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16], metavar="N", help="requests at once")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="each with servers of its own")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of traffic in each phase of a round, at one server"
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="append the figures to this file of results")
    args = parser.parse_args()
    options = LaunchOptions(port=0)
    phases: list[Phase] = []
    for concurrency, round_ in itertools.product(args.concurrency, range(args.rounds)):
        with OwnServer(plain_options(options)) as plain, OwnServer(options) as drafting:
            phases += asyncio.run(measure(drafting.url, plain.url, concurrency, round_, args.seconds))
        show(phases)
    for rounds in same_phases(phases):
        print(f"{rounds[0].concurrency} at once, {rounds[0].name}: {overall_ratio(rounds):.3f}")
    if args.record is not None:
        results.append(args.record, to_results(phases, sys.argv[1:]))
    return 0 if all(results.meets(overall_ratio(rounds), TARGET) for rounds in same_phases(phases)) else 1


if __name__ == "__main__":
    sys.exit(main())
