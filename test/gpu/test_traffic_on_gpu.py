"""Much traffic of all kinds leaves nothing behind: no page, no memory, no state that changes a later answer."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from slipstream.engine import Engine
from support.gpu_models import gpu_engine, idle_status, prompt_of, write_gpu_pair

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]  # kernels are compiled the first time

NUM_REQUESTS = 1000
MAX_RUNNING = 32
AT_ONCE = 2 * MAX_RUNNING  # so that half of them wait
MIB = 2**20
CONTROL: dict[str, Any] = {"temperature": 0, "max_new_tokens": 40, "ignore_eos": True}
OPTIONS: dict[str, Any] = {"dtype": "float32", "max_running_requests": MAX_RUNNING, "chunked_prefill_size": 256}
OPTIONS |= {"max_total_tokens": 1536}
FEATURES: Sequence[dict[str, Any]] = (  # more than half of them need no host in a step
    {"temperature": 0},
    {"temperature": 0.0, "max_new_tokens": 0},
    {"temperature": 0.0, "max_new_tokens": 1},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 20},
    {"temperature": 1.0, "min_p": 0.05, "accept_cap": 1},
    {"temperature": 1.0, "stop": ["a", "e", " ", "0", "\n"]},
    {"temperature": 0.0, "stop_token_ids": [*range(64, 320, 6)]},
    {"temperature": 0.9, "repetition_penalty": 1.2},
    {"temperature": 0.9, "presence_penalty": 0.4, "frequency_penalty": 0.2},
    {"temperature": 0.9, "logit_bias": {"100": 3.0}},
    {"temperature": 0.9, "min_new_tokens": 5},
)


@dataclass(frozen=True)
class Request:
    """`leaves_after`: so many outputs are read before the client goes away; None: it stays."""

    prompt: list[int]
    sampling: dict[str, Any]
    top_logprobs: int | None
    leaves_after: int | None
    is_plain: bool  # wants no drafts


def make_requests(count: int, seed: int) -> list[Request]:
    """Of random lengths; some begin alike, so that pages are shared."""
    rng = random.Random(seed)
    common = prompt_of(seed, 80)
    found = []
    for index in range(count):
        prompt = common[: rng.choice((0, 0, 16, 80))] + prompt_of(seed + index, rng.choice((1, 3, 20, 60, 300)))
        sampling = {"max_new_tokens": rng.randint(1, 48), "ignore_eos": True, "sampling_seed": index}
        found.append(
            Request(
                prompt,
                sampling | rng.choice(FEATURES),
                top_logprobs=rng.choice((0, 3)) if rng.random() < 0.1 else None,
                leaves_after=rng.randint(0, 6) if rng.random() < 0.25 else None,
                is_plain=rng.random() < 0.1,
            )
        )
        if found[-1].sampling.get("min_new_tokens", 0) > found[-1].sampling["max_new_tokens"]:
            found[-1].sampling["max_new_tokens"] = 20
    return found


async def ask(engine: Engine, request: Request, outcomes: Counter[str]) -> None:
    stream = engine.stream(
        request.prompt,
        request.sampling,
        top_logprobs=request.top_logprobs,
        speculative=False if request.is_plain else None,
    )
    seen = num_tokens = num_logprobs = 0
    async for output in stream:
        seen, num_tokens = seen + 1, num_tokens + len(output.token_ids)
        num_logprobs += len(output.logprobs or ())
        if request.leaves_after is not None and seen > request.leaves_after:
            outcomes["left"] += 1
            break
        if output.finish is not None:
            outcomes[output.finish.type] += 1
            assert num_tokens <= request.sampling["max_new_tokens"]
            assert num_logprobs == (0 if request.top_logprobs is None else num_tokens)
    await stream.aclose()


async def ask_all(engine: Engine, requests: Sequence[Request]) -> Counter[str]:
    """What became of how many."""
    outcomes: Counter[str] = Counter()
    places = asyncio.Semaphore(AT_ONCE)

    async def in_turn(request: Request) -> None:
        async with places:
            await asyncio.wait_for(ask(engine, request, outcomes), 60)

    await asyncio.gather(*(in_turn(request) for request in requests))
    return outcomes


def allocated_bytes() -> int:
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


@pytest.mark.parametrize("with_drafts", [False, True], ids=["plain", "drafts"])
def test_a_thousand_requests_leave_nothing_behind(with_drafts: bool, tmp_path: Path) -> None:
    target, draft = write_gpu_pair(tmp_path)
    control = prompt_of(0, 100)
    with gpu_engine(target, draft if with_drafts else None, **OPTIONS) as engine:
        before = engine.generate(control, CONTROL)[0].token_ids
        asyncio.run(ask_all(engine, make_requests(200, seed=1)))  # tables and workspaces grow to their size
        idle_status(engine)
        allocated = allocated_bytes()
        started = time.monotonic()
        outcomes = asyncio.run(ask_all(engine, make_requests(NUM_REQUESTS, seed=10_000)))
        elapsed_s = time.monotonic() - started
        status = idle_status(engine)
        grown = allocated_bytes() - allocated
        after = engine.generate(control, CONTROL)[0]
        engine.flush_cache()
        flushed = idle_status(engine)
    counts = status.counters
    print(
        f"{elapsed_s:.1f} s, {dict(outcomes)}, {counts.num_steps} steps, {counts.num_generated_tokens} tokens, "
        f"{counts.num_preemptions} preemptions, {counts.num_accepted_tokens} drafts accepted, {grown} bytes more"
    )
    assert sum(outcomes.values()) == NUM_REQUESTS
    assert min(outcomes[kind] for kind in ("stop", "length", "left")) > 20
    assert (counts.num_accepted_tokens > 100) == with_drafts
    assert status.num_pages_free + status.num_pages_cached == status.num_pages
    assert flushed.num_pages_free == flushed.num_pages
    assert flushed.counters.num_integrity_errors == 0
    assert abs(grown) <= MIB
    assert after.token_ids == before
