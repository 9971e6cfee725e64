"""The scheduler with a worker that checks every KV read: streams, sharing, preemption, aborts, endings."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from slipstream.config.processes import SchedulerDrafts
from slipstream.messages.sampling import FinishReason, SamplingParams
from slipstream.messages.to_scheduler import AddRequest, FinishChoice
from slipstream.messages.to_tokenizer import AbortRequest, FlushCache, FlushDone
from support.fake_worker import expected_answer
from support.scheduler_harness import VOCAB_SIZE, Harness, RandomController, chain, lookup, scheduler_config, tree


def expected(prompt: list[int], **changes: object) -> list[int]:
    sampling = SamplingParams(**{"max_new_tokens": 6, "seed": 3, **changes})  # type: ignore[arg-type]
    return expected_answer(prompt, sampling, VOCAB_SIZE)


def test_many_requests_each_get_their_own_stream() -> None:
    harness = Harness(scheduler_config(), num_pages=40)
    prompts = {f"r{i}": [i % VOCAB_SIZE, (i * i) % VOCAB_SIZE] * (i + 1) for i in range(8)}
    for rid, prompt in prompts.items():
        harness.add(rid, prompt)
    harness.run()
    for rid, prompt in prompts.items():
        assert harness.tokens[rid, 0] == expected(prompt)
        assert harness.finishes[rid, 0] == FinishReason("length")
    assert harness.scheduler.check_integrity() is None


def test_two_steps_are_in_flight_and_one_when_overlap_is_off() -> None:
    for steps in (1, 2):
        harness = Harness(scheduler_config(max_steps_in_flight=steps), num_pages=40)
        harness.add("a", [1, 2, 3])
        while harness.plan():
            pass
        assert harness.scheduler.num_in_flight == steps


def test_a_step_takes_prompt_tokens_up_to_its_budget_and_decodes_beside_them() -> None:
    harness = Harness(scheduler_config(chunked_prefill_size=5), num_pages=40)
    harness.add("short", [1, 2])
    harness.plan()
    harness.add("long", [3] * 13)
    harness.run()
    lengths = [[chunk.length for chunk in plan.chunks if chunk.length] for plan in harness.sent_plans]
    assert lengths[:4] == [[2], [5], [5], [3]]
    assert all(plan.decode for plan in harness.sent_plans[1:4]), "the short one decodes while the long one prefills"


def test_a_stop_id_ends_the_stream_and_is_its_last_token() -> None:
    prompt = [1, 2, 3]
    answer = expected(prompt, max_new_tokens=20)
    stop = answer[3]
    harness = Harness(scheduler_config(), num_pages=40)
    harness.add("a", prompt, max_new_tokens=20, stop_token_ids=(stop,))
    harness.run()
    assert harness.tokens["a", 0] == answer[: answer.index(stop) + 1]
    assert harness.finishes["a", 0] == FinishReason("stop", stop)


def test_a_second_request_starts_from_the_first_ones_pages() -> None:
    harness = Harness(scheduler_config(), num_pages=40)
    prompt = [1, 2, 3, 4, 0, 1, 2, 3, 4]
    harness.add("cold", prompt)
    harness.run()
    harness.add("warm", prompt)
    harness.run()
    assert (harness.num_cached["cold", 0], harness.num_cached["warm", 0]) == (0, 8)
    assert harness.tokens["warm", 0] == harness.tokens["cold", 0] == expected(prompt)


def test_a_conversation_reuses_the_answer_of_the_turn_before() -> None:
    harness = Harness(scheduler_config(), num_pages=40)
    prompt = [1, 2, 3, 4]
    harness.add("one", prompt, max_new_tokens=9)
    harness.run()
    history = prompt + harness.tokens["one", 0]
    harness.add("two", [*history, 2, 2])
    harness.run()
    assert harness.num_cached["two", 0] == 12, "13 tokens, of which the last has no KV: three whole pages"


def test_siblings_share_the_prompt_that_the_first_choice_computed() -> None:
    harness = Harness(scheduler_config(), num_pages=40)
    prompt = [1, 2, 3, 4, 0, 1, 2, 3, 4]
    harness.add("a", prompt, n=3)
    harness.run()
    for choice in range(3):
        assert harness.tokens["a", choice] == expected(prompt, choice=choice)
    assert [harness.num_cached["a", choice] for choice in range(3)] == [0, 8, 8]


def test_pages_run_out_and_everybody_still_gets_the_whole_answer() -> None:
    harness = Harness(scheduler_config(max_running_requests=4), num_pages=13)
    prompts = {f"r{i}": [i] * 5 for i in range(4)}
    for rid, prompt in prompts.items():
        harness.add(rid, prompt, max_new_tokens=25)
    harness.run()
    assert harness.scheduler.counters.num_preemptions > 0
    for rid, prompt in prompts.items():
        assert harness.tokens[rid, 0] == expected(prompt, max_new_tokens=25)


def test_the_longest_possible_request_fits_alone() -> None:
    harness = Harness(scheduler_config(), num_pages=5)
    assert harness.scheduler.max_sequence_len == 16
    harness.add("a", [1] * 10)
    harness.run()
    assert len(harness.tokens["a", 0]) == 6


@pytest.mark.parametrize("num_events", range(6))
def test_abort_at_every_stage_returns_everything(num_events: int) -> None:
    harness = Harness(scheduler_config(max_running_requests=1), num_pages=20)
    harness.add("a", [1] * 9, n=2)
    harness.add("queued", [2] * 9)
    for event in range(num_events):
        harness.plan() if event % 2 == 0 else harness.work()
    harness.send(AbortRequest("a"))
    harness.send(AbortRequest("queued"))
    num_tokens = sum(map(len, harness.tokens.values()))
    harness.run()
    assert not harness.finishes and sum(map(len, harness.tokens.values())) == num_tokens, "nothing comes after an abort"
    assert harness.scheduler.check_integrity() is None
    harness.send(FlushCache("f"))
    assert harness.scheduler.status(0.0).num_pages_free == 19


def test_abort_matches_the_exact_id_only() -> None:
    harness = Harness(scheduler_config(), num_pages=40)
    harness.add("ab", [1, 2])
    harness.send(AbortRequest("a"))
    harness.send(AbortRequest(""))
    harness.run()
    assert harness.finishes["ab", 0].type == "length"


def test_a_stop_string_trims_what_the_scheduler_keeps() -> None:
    harness = Harness(scheduler_config(), num_pages=40)
    prompt = [1, 2, 3, 4]
    harness.add("a", prompt, max_new_tokens=20)
    for _ in range(12):
        harness.plan()
        harness.work()
    harness.send(FinishChoice("a", 0, num_tokens=5))
    harness.run()
    assert ("a", 0) not in harness.finishes, "the tokenizer has answered the client itself"
    answer = expected(prompt, max_new_tokens=20)
    harness.add("b", prompt + answer[:12] + [0])
    harness.run()
    assert harness.num_cached["b", 0] == 8, "4 + 5 tokens were kept: two whole pages"


def test_a_failing_request_fails_alone_and_leaves_nothing_in_the_tree() -> None:
    harness = Harness(scheduler_config(), num_pages=40)
    bad, good = [1] * 9, [2] * 9
    harness.worker.poisoned_prompts.add(tuple(bad))
    harness.add("bad", bad, n=2)
    harness.add("good", good)
    harness.run()
    assert "not finite" in harness.failed["bad"]
    assert harness.tokens["good", 0] == expected(good)
    harness.worker.poisoned_prompts.clear()
    harness.add("again", bad)
    harness.run()
    assert harness.tokens["again", 0] == expected(bad)


def test_prompt_logprobs_skip_the_cache_and_come_whole_and_once() -> None:
    harness = Harness(scheduler_config(chunked_prefill_size=4), num_pages=40)
    prompt = [1, 2, 3, 4, 0, 1, 2, 3, 4]
    harness.add("cold", prompt)
    harness.run()
    harness.add("scored", prompt, prompt_logprobs_from=2)
    harness.run()
    scored = harness.prompt_logprobs["scored", 0]
    assert [item.token_id for item in scored] == prompt[2:]
    assert [item.logprob for item in scored] == [-float(at) for at in range(2, 9)]
    assert harness.num_cached["scored", 0] == 0


def test_no_new_tokens_scores_the_prompt_and_nothing_else() -> None:
    harness = Harness(scheduler_config(), num_pages=40)
    harness.add("a", [1, 2, 3], max_new_tokens=0, prompt_logprobs_from=0)
    harness.run()
    assert harness.tokens["a", 0] == []
    assert harness.finishes["a", 0] == FinishReason("length")
    assert [item.token_id for item in harness.prompt_logprobs["a", 0]] == [2, 3]


def test_flush_is_refused_while_anything_runs() -> None:
    harness = Harness(scheduler_config(), num_pages=40)
    harness.add("a", [1, 2, 3, 4, 0])
    harness.send(FlushCache("early"))
    harness.run()
    harness.send(FlushCache("late"))
    early, late = harness.others
    assert isinstance(early, FlushDone) and early.error is not None and "idle" in early.error
    assert isinstance(late, FlushDone) and late.error is None
    assert harness.scheduler.status(0.0).num_pages_cached == 0


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of arrivals, plans, results, aborts, stop strings and flushes; with and without drafts."""

    @initialize(
        page_size=st.sampled_from([1, 2, 4]),
        slots=st.integers(1, 4),
        chunk=st.integers(1, 9),
        num_pages=st.integers(2, 24),
        prefix_cache=st.booleans(),
        steps=st.integers(1, 2),
        drafts=st.sampled_from([None, chain(1), chain(3), chain(5), tree(2, 2, 5), tree(3, 4, 7), lookup(3)]),
        fickle=st.booleans(),
        seed=st.integers(0, 2**32),
    )
    def start(
        self,
        page_size: int,
        slots: int,
        chunk: int,
        num_pages: int,
        prefix_cache: bool,
        steps: int,
        drafts: SchedulerDrafts | None,
        fickle: bool,
        seed: int,
    ) -> None:
        self.harness = Harness(
            scheduler_config(
                page_size=page_size,
                max_running_requests=slots,
                chunked_prefill_size=chunk,
                prefix_cache=prefix_cache,
                max_steps_in_flight=steps,
                drafts=drafts,
            ),
            num_pages,
            RandomController(drafts, seed) if fickle and drafts else None,
            seed,
        )
        self.requests: dict[str, AddRequest] = {}
        self.cut: dict[tuple[str, int], int] = {}
        self.aborted: set[str] = set()

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=20),
        n=st.integers(1, 3),
        max_new=st.integers(0, 16),
        stops=st.sets(st.integers(0, VOCAB_SIZE - 1), max_size=1),
        scored=st.booleans(),
        poison=st.sampled_from([False, False, False, True]),
        max_drafts=st.sampled_from([None, None, None, 0, 1, 2]),
    )
    def add(
        self,
        prompt: list[int],
        n: int,
        max_new: int,
        stops: set[int],
        scored: bool,
        poison: bool,
        max_drafts: int | None,
    ) -> None:
        room = self.harness.scheduler.max_sequence_len - len(prompt)
        if room < 1:
            return  # the tokenizer refuses these
        if poison:
            self.harness.worker.poisoned_prompts.add(tuple(prompt))
        rid = f"r{len(self.requests)}"
        self.requests[rid] = AddRequest(
            rid,
            prompt,
            [
                SamplingParams(
                    max_new_tokens=min(max_new, room),
                    seed=1,
                    choice=choice,
                    stop_token_ids=tuple(stops),
                    prompt_logprobs_from=0 if scored else None,
                    top_logprobs=0,
                    max_draft_tokens=max_drafts,
                )
                for choice in range(n)
            ],
        )
        self.harness.send(self.requests[rid])

    @rule()
    def plan(self) -> None:
        self.harness.plan()

    @rule()
    def work(self) -> None:
        self.harness.work()

    @rule(count=st.integers(1, 8))
    def plan_and_work(self, count: int) -> None:
        for _ in range(count):
            self.harness.plan()
            self.harness.work()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        rid = data.draw(st.sampled_from(sorted(self.requests)))
        self.aborted.add(rid)
        self.harness.send(AbortRequest(rid))

    @precondition(lambda self: any(self.harness.tokens.values()))
    @rule(data=st.data())
    def stop_string(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.harness.tokens)))
        if key not in self.harness.finishes and key not in self.cut:
            self.cut[key] = data.draw(st.integers(0, len(self.harness.tokens[key])))
            self.harness.send(FinishChoice(key[0], key[1], self.cut[key]))

    @rule()
    def flush(self) -> None:
        self.harness.send(FlushCache("flush"))

    @invariant()
    def pages_and_slots_add_up(self) -> None:
        if hasattr(self, "harness"):
            assert self.harness.scheduler.check_integrity() is None

    def teardown(self) -> None:
        if not hasattr(self, "harness"):
            return
        self.harness.run()
        assert self.harness.scheduler.check_integrity() is None
        self.harness.send(FlushCache("end"))
        assert self.harness.scheduler.status(0.0).num_pages_free == self.harness.scheduler.status(0.0).num_pages
        for rid, request in self.requests.items():
            for sampling in request.choices:
                self.check_answer((rid, sampling.choice), request.token_ids, sampling)

    def check_answer(self, key: tuple[str, int], prompt: list[int], sampling: SamplingParams) -> None:
        answer = expected_answer(prompt, sampling, VOCAB_SIZE)
        got = self.harness.tokens.get(key, [])
        assert got == answer[: len(got)]
        assert [item.token_id for item in self.harness.logprobs.get(key, [])] == got
        if key not in self.cut and key[0] not in self.aborted and key[0] not in self.harness.failed:
            assert got == answer
            if sampling.prompt_logprobs_from is not None:
                assert [item.token_id for item in self.harness.prompt_logprobs[key]] == prompt[1:]


SchedulerMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
TestSchedulerMachine = SchedulerMachine.TestCase
