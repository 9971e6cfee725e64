"""A worker with a draft commits what it commits without one, whatever is drafted, verified, re-fed or released."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from slipstream.config.drafting import DraftShape
from slipstream.config.processes import WorkerDrafts
from slipstream.messages.sampling import SamplingParams
from slipstream.messages.to_scheduler import SlotResult
from slipstream.messages.to_worker import NewRequest, PrefillChunk
from support.checkpoints import reference_model, write_native
from support.draft_checkpoints import write_copying_draft
from support.running_worker import GREEDY, Driver, load_worker

CHAIN = DraftShape(depth=4, topk=1, num_nodes=4)
TREE = DraftShape(depth=3, topk=3, num_nodes=8)
NUM_TOKENS = 40
VOCABULARY = 97
ALL_FEATURES = SamplingParams(
    max_new_tokens=NUM_TOKENS,
    seed=7,
    temperature=0.9,
    top_p=0.95,
    top_k=60,
    min_p=0.001,
    repetition_penalty=1.2,
    presence_penalty=0.3,
    frequency_penalty=0.2,
    logit_bias={5: 1.5, 6: -3.0},
    min_new_tokens=12,
    stop_token_ids=(3, 4, 9),
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    target = write_native(folder / "target", reference_model())
    return target, write_copying_draft(folder / "draft", target, noise=0.05)


def drafting_worker(pair: tuple[Path, Path], shape: DraftShape = CHAIN, dtype: str | None = None) -> Driver:
    target, draft = pair
    return Driver(load_worker(target, drafts=WorkerDrafts("EAGLE", shape, 2, model_path=str(draft), dtype=dtype)))


@dataclass
class Request:
    slot: int
    prompt: list[int]
    sampling: SamplingParams
    pages: list[int]
    tokens: list[int]
    warm: bool
    num_computed: int = 0


def serve(driver: Driver, requests: Sequence[Request], rng: random.Random, depth: int) -> int:
    """Chunks and decode rows of all requests mixed at random, with a random depth for each row; returns how many drafts
    were accepted.
    """
    accepted = 0
    waiting = list(requests)
    while any(len(request.tokens) < NUM_TOKENS for request in requests):
        chunks, decode, depths, new = [], [], {}, []
        for request in requests:
            if request in waiting:
                if rng.random() < 0.3:
                    waiting.remove(request)
                    new.append(NewRequest(request.slot, request.prompt, len(request.prompt), request.sampling,
                                          request.pages, 0, warm=request.warm))  # fmt: skip
                else:
                    continue
            if request.num_computed < len(request.prompt):
                length = min(rng.randint(1, 9), len(request.prompt) - request.num_computed)
                last = request.num_computed + length == len(request.prompt)
                chunks.append(PrefillChunk(request.slot, request.num_computed, length, last))
                request.num_computed += length
            elif len(request.tokens) < NUM_TOKENS and rng.random() < 0.8:
                decode.append(request.slot)
                depths[request.slot] = rng.randint(0, depth)
        if not chunks and not decode:
            continue
        results = driver.step(new=new, chunks=chunks, decode=decode,
                              draft_depths={slot: each for slot, each in depths.items() if each})  # fmt: skip
        for request in requests:
            if request.slot in results:
                result = results[request.slot]
                check(result, depths.get(request.slot, 0) if request.warm else 0, bool(chunks))
                request.tokens += result.token_ids
                accepted += max(len(result.token_ids) - 1, 0)
    return accepted


def check(result: SlotResult, depth: int, may_be_chunk: bool) -> None:
    assert result.error is None
    assert len(result.token_ids) <= depth + 1
    assert result.token_ids or may_be_chunk
    assert (result.num_drafts > 0) == (depth > 0)


def make_requests(rng: random.Random, count: int) -> list[Request]:
    samplings = [GREEDY, ALL_FEATURES]
    return [
        Request(
            slot,
            [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 30))],
            samplings[slot % 2],
            list(range(1 + 20 * slot, 21 + 20 * slot)),
            [],
            warm=slot != 2,
        )
        for slot in range(count)
    ]


@pytest.mark.parametrize(("shape", "depth"), [(CHAIN, 4), (CHAIN, 1), (TREE, 3)], ids=["chain", "one", "tree"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"], ids=["", "draft in bf16"])
def test_speculation_changes_no_token(
    pair: tuple[Path, Path], shape: DraftShape, depth: int, dtype: str | None
) -> None:
    """Warm slots and a cold one side by side; depths are planned for all of them."""
    rng = random.Random(depth)
    requests = make_requests(rng, 5)
    accepted = serve(drafting_worker(pair, shape, dtype), requests, rng, depth)
    plain = Driver(load_worker(pair[0]))
    for request in requests:
        expected = plain.generate(request.slot, request.prompt, request.pages, NUM_TOKENS, sampling=request.sampling)
        assert request.tokens[:NUM_TOKENS] == expected, f"slot {request.slot}"
    assert accepted > 20, "hardly any draft was accepted: nothing was tested"


def test_slots_are_used_again(pair: tuple[Path, Path]) -> None:
    """Released, gone cold, and taken by others: nothing of the former request shows."""
    rng = random.Random(3)
    driver = drafting_worker(pair)
    plain = Driver(load_worker(pair[0]))
    for turn in range(3):
        requests = make_requests(rng, 3)
        serve(driver, requests, rng, 4)
        for request in requests:
            expected = plain.generate(
                request.slot, request.prompt, request.pages, NUM_TOKENS, sampling=request.sampling
            )
            assert request.tokens[:NUM_TOKENS] == expected, f"turn {turn}, slot {request.slot}"
        slots = [request.slot for request in requests]
        driver.step(release=slots)
        plain.step(release=slots)


def test_a_cold_slot_is_drafted_for_no_longer(pair: tuple[Path, Path]) -> None:
    driver = drafting_worker(pair)
    driver.prefill(0, [1, 2, 3], list(range(1, 20)), warm=True)
    assert driver.step(decode=[0], draft_depths={0: 2})[0].num_drafts == 2
    assert driver.step(decode=[0], draft_depths={0: 2}, cold=[0])[0].num_drafts == 0
    assert driver.step(decode=[0], draft_depths={0: 2})[0].num_drafts == 0


def test_a_broken_slot_leaves_a_prompt_that_ends_in_the_same_step_alone(pair: tuple[Path, Path]) -> None:
    driver, plain = drafting_worker(pair), Driver(load_worker(pair[0]))
    expected = plain.generate(1, [5, 6, 7, 8, 9], list(range(21, 40)), 12)
    driver.prefill(0, [1, 2, 3], list(range(1, 20)), warm=True)
    driver.worker._attention._caches[0][1 * 4] = float("nan")  # type: ignore[attr-defined]
    new = NewRequest(1, [5, 6, 7, 8, 9], 5, GREEDY, list(range(21, 40)), 0, warm=True)
    results = driver.step(new=[new], chunks=[PrefillChunk(1, 0, 5, True)], decode=[0], draft_depths={0: 2})
    assert "not finite" in str(results[0].error)
    tokens = list(results[1].token_ids)
    while len(tokens) < 12:
        tokens += driver.step(decode=[1], draft_depths={1: 3})[1].token_ids
    assert tokens[:12] == expected


@pytest.mark.parametrize(("limit", "depth", "verified"), [(1, 1, 1), (2, 2, 2), (7, 3, 7), (None, 3, 8), (100, 3, 8)])
def test_a_request_s_limit_counts_every_branch(
    pair: tuple[Path, Path], limit: int | None, depth: int, verified: int
) -> None:
    driver = drafting_worker(pair, TREE)
    sampling = msgspec.structs.replace(GREEDY, max_draft_tokens=limit)
    driver.prefill(0, [1, 2, 3], list(range(1, 20)), warm=True, sampling=sampling)
    assert driver.step(decode=[0], draft_depths={0: depth})[0].num_drafts == verified
