"""A worker that never looks at the device commits what the plain one does; kernels run in Triton's interpreter."""

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from slipstream.config.drafting import DraftShape
from slipstream.config.processes import WorkerDrafts
from slipstream.messages.sampling import SamplingParams
from slipstream.messages.to_scheduler import SlotResult, StepResult
from slipstream.messages.to_worker import NewRequest, Plan, PrefillChunk
from slipstream.worker.device_worker import DeviceWorker
from slipstream.worker.worker import Worker
from support.checkpoints import reference_model, write_native
from support.device_workers import load_device_worker
from support.draft_checkpoints import write_copying_draft
from support.running_worker import GREEDY, Driver, load_worker

DEPTH = 2
SAMPLED = SamplingParams(max_new_tokens=64, seed=5, temperature=0.8, top_k=40, top_p=0.9, min_p=0.01)
PENALISED = SamplingParams(max_new_tokens=64, seed=5, temperature=0.8, repetition_penalty=1.3, logit_bias={7: 2.0})
PAGES_EACH = 12  # of 4 tokens


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    target = write_native(folder / "target", reference_model())
    return target, write_copying_draft(folder / "draft", target, noise=0.0)


def drafts(pair: tuple[Path, Path], **changes: Any) -> WorkerDrafts:
    return WorkerDrafts("EAGLE", DraftShape(DEPTH, 1, DEPTH), 2, model_path=str(pair[1]), **changes)


def pages_of(slot: int) -> list[int]:
    return list(range(1 + PAGES_EACH * slot, 1 + PAGES_EACH * (slot + 1)))


def prompt_of(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(97), k=length)


def expected(pair: tuple[Path, Path], prompt: list[int], sampling: SamplingParams, count: int) -> list[int]:
    return Driver(load_worker(pair[0])).generate(0, prompt, pages_of(0), count, sampling=sampling)


class Pipeline:
    """Submits plans before the results of those before them are taken, as the scheduler does."""

    def __init__(self, worker: DeviceWorker, depth: int = 2) -> None:
        self.worker, self.depth = worker, depth
        self.plans: list[Plan] = []
        self.results: list[StepResult] = []

    def step(self, **plan: Any) -> None:
        while self.worker.num_pending >= self.depth:
            self.results += self.worker.finished()
        self.plans.append(Plan(step=len(self.plans) + 1, **plan))
        self.worker.submit(self.plans[-1])

    def wait(self) -> list[StepResult]:
        while self.worker.num_pending:
            self.results += self.worker.finished()
        self.results += self.worker.finished()
        assert [result.step for result in self.results] == [plan.step for plan in self.plans]
        return self.results

    def assert_same_as(self, plain: Worker) -> None:
        """The plain worker, given the same plans, has the same tokens and the same drafts in every step."""
        for plan, result in zip(self.plans, self.wait(), strict=True):
            wanted = plain.step(plan).results
            assert [(entry.slot, entry.token_ids, entry.num_drafts, entry.error) for entry in result.results] == [
                (entry.slot, entry.token_ids, entry.num_drafts, entry.error) for entry in wanted
            ]

    def of_slot(self, slot: int) -> list[SlotResult]:
        return [entry for result in self.wait() for entry in result.results if entry.slot == slot]

    def tokens(self, slot: int) -> list[int]:
        return [token_id for entry in self.of_slot(slot) for token_id in entry.token_ids]


def enter(
    slot: int, prompt: list[int], sampling: SamplingParams = GREEDY, *, warm: bool = False, last: bool = True
) -> dict[str, Any]:
    """What a plan says of a request that gets its slot and computes all its prompt, or all but 5 tokens."""
    length = len(prompt) if last else len(prompt) - 5
    return {
        "new": [NewRequest(slot, prompt, len(prompt), sampling, pages_of(slot), 0, warm=warm)],
        "chunks": [PrefillChunk(slot, 0, length, last)],
    }


def together(*parts: dict[str, Any]) -> dict[str, Any]:
    plan: dict[str, Any] = {}
    for part in parts:
        for name, entries in part.items():
            plan[name] = [*plan.get(name, []), *entries]
    return plan


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_steps_in_flight_give_the_tokens_of_the_plain_worker(pair: tuple[Path, Path], sampling: SamplingParams) -> None:
    """Two requests, one of them in chunks of its prompt beside the other's decode steps."""
    pipeline = Pipeline(load_device_worker(pair[0]))
    first, second = prompt_of(1, 21), prompt_of(2, 17)
    pipeline.step(**enter(2, first, sampling))
    pipeline.step(**together({"decode": [2]}, enter(0, second, sampling, last=False)))
    pipeline.step(decode=[2], chunks=[PrefillChunk(0, 12, 5, True)])
    for _ in range(4):
        pipeline.step(decode=[0, 2])
    assert pipeline.tokens(2) == expected(pair, first, sampling, 7)
    assert pipeline.tokens(0) == expected(pair, second, sampling, 5)


def test_drafts_change_no_token_and_some_are_accepted(pair: tuple[Path, Path]) -> None:
    """Warm slots with different depths, one with a cap, and a cold one."""
    pipeline = Pipeline(load_device_worker(pair[0], drafts=drafts(pair)))
    samplings = [GREEDY, SAMPLED, msgspec.structs.replace(SAMPLED, accept_cap=0), GREEDY]
    prompts = [prompt_of(seed, 9 + seed) for seed in range(4)]
    pipeline.step(**together(*(enter(slot, prompts[slot], samplings[slot], warm=slot != 3) for slot in range(4))))
    for _ in range(4):
        pipeline.step(decode=[0, 1, 2, 3], draft_depths={0: DEPTH, 1: 1, 2: DEPTH, 3: DEPTH})
    pipeline.assert_same_as(load_worker(pair[0], drafts=drafts(pair)))
    for slot in range(4):
        tokens = pipeline.tokens(slot)
        assert tokens == expected(pair, prompts[slot], samplings[slot], len(tokens))
    assert sum(len(pipeline.tokens(slot)) - 5 for slot in range(4)) > 0
    assert len(pipeline.tokens(2)) == len(pipeline.tokens(3)) == 5


def test_a_depth_of_zero_keeps_the_draft_complete(pair: tuple[Path, Path]) -> None:
    pipeline = Pipeline(load_device_worker(pair[0], drafts=drafts(pair)))
    pipeline.step(**enter(0, prompt_of(3, 12), warm=True))
    for depth in (DEPTH, 0, 0, DEPTH, DEPTH, DEPTH):
        pipeline.step(decode=[0], draft_depths={0: depth} if depth else {})
    pipeline.assert_same_as(load_worker(pair[0], drafts=drafts(pair)))


def test_a_slot_is_given_away_while_its_last_step_is_in_flight(pair: tuple[Path, Path]) -> None:
    pipeline = Pipeline(load_device_worker(pair[0], drafts=drafts(pair)), depth=3)
    first, second = prompt_of(4, 10), prompt_of(5, 14)
    pipeline.step(**enter(1, first, warm=True))
    pipeline.step(decode=[1], draft_depths={1: DEPTH})
    pipeline.step(release=[1], **enter(1, second, warm=True))
    for _ in range(3):
        pipeline.step(decode=[1], draft_depths={1: DEPTH})
    pipeline.assert_same_as(load_worker(pair[0], drafts=drafts(pair)))


def test_steps_in_which_the_host_has_a_say_stand_between_others(pair: tuple[Path, Path]) -> None:
    """A request with penalties comes and goes; nobody's tokens change."""
    pipeline = Pipeline(load_device_worker(pair[0], drafts=drafts(pair)))
    pipeline.step(**enter(0, prompt_of(6, 11), SAMPLED, warm=True))
    for _ in range(2):
        pipeline.step(decode=[0], draft_depths={0: DEPTH})
    pipeline.step(**together({"decode": [0]}, enter(1, prompt_of(7, 8), PENALISED, warm=True)))
    for _ in range(2):
        pipeline.step(decode=[1, 0], draft_depths={0: DEPTH, 1: 1})
    pipeline.step(decode=[0], draft_depths={0: 1}, release=[1])
    for _ in range(2):
        pipeline.step(decode=[0], draft_depths={0: DEPTH})
    # what is drafted for a request with penalties differs; what comes out does not
    for slot, seed, length, sampling in ((0, 6, 11, SAMPLED), (1, 7, 8, PENALISED)):
        tokens = pipeline.tokens(slot)
        assert tokens == expected(pair, prompt_of(seed, length), sampling, len(tokens))
    assert [entry.num_drafts for entry in pipeline.of_slot(0)] == [0, 2, 2, 0, 2, 2, 1, 2, 2]


def test_a_slot_that_asks_for_logprobs_gets_them(pair: tuple[Path, Path]) -> None:
    sampling = msgspec.structs.replace(GREEDY, top_logprobs=2)
    pipeline = Pipeline(load_device_worker(pair[0]))
    pipeline.step(**enter(0, prompt_of(8, 9), sampling))
    pipeline.step(decode=[0])
    assert [len(entry.logprobs or ()) for entry in pipeline.of_slot(0)] == [1, 1]


@pytest.mark.parametrize(("length", "num_slots", "num_steps"), [(1.0, 1, 2), (2.4, 4, 4), (3.0, 1, 2)])
def test_simulated_acceptance_has_its_length(
    pair: tuple[Path, Path], length: float, num_slots: int, num_steps: int
) -> None:
    worker = load_device_worker(pair[0], drafts=drafts(pair, simulated_length=length))
    pipeline = Pipeline(worker)
    slots = range(num_slots)
    pipeline.step(**together(*(enter(slot, prompt_of(slot, 4), GREEDY, warm=True) for slot in slots)))
    for _ in range(num_steps):
        pipeline.step(decode=list(slots), draft_depths=dict.fromkeys(slots, DEPTH))
    counts = [len(entry.token_ids) for slot in slots for entry in pipeline.of_slot(slot)[1:]]
    assert all(count in (int(length), -(-length // 1)) for count in counts)
    assert abs(sum(counts) / len(counts) - length) < 0.3


def test_a_request_whose_numbers_are_not_finite_fails_alone(pair: tuple[Path, Path]) -> None:
    worker = load_device_worker(pair[0])
    pipeline = Pipeline(worker)
    pipeline.step(**together(enter(0, prompt_of(1, 9)), enter(1, prompt_of(2, 9))))
    pipeline.wait()
    for cache in worker.parts.caches:
        cache[pages_of(1)[0]] = float("nan")
    pipeline.step(decode=[0, 1])
    pipeline.step(decode=[0, 1])
    assert [entry.error is None for entry in pipeline.of_slot(0)] == [True] * 3
    assert [entry.error is None for entry in pipeline.of_slot(1)] == [True, False, False]
