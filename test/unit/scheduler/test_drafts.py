"""Speculation as the scheduler sees it: how much it reserves, keeps, counts, and which pages others may start from."""

import itertools

import pytest

from slipstream.config.processes import SchedulerDrafts
from slipstream.messages.sampling import DraftStats, FinishReason, SamplingParams
from slipstream.messages.to_scheduler import FinishChoice
from slipstream.messages.to_tokenizer import FlushCache
from slipstream.scheduler.draft_controller import DraftController, ObservedStep
from support.fake_worker import expected_answer
from support.scheduler_harness import VOCAB_SIZE, Harness, chain, lookup, scheduler_config, tree


def expected(prompt: list[int], **changes: object) -> list[int]:
    sampling = SamplingParams(**{"max_new_tokens": 6, "seed": 3, **changes})  # type: ignore[arg-type]
    return expected_answer(prompt, sampling, VOCAB_SIZE)


class Script(DraftController):
    """Does what its attributes say, and keeps what it is told."""

    def __init__(self, depth: int, warm: bool = True) -> None:
        super().__init__(chain(depth).shape, adaptive=False, has_kv=True)
        self.chosen = depth
        self.warm = warm
        self.cold_now = False
        self.asked: list[tuple[int, int]] = []
        self.num_admissions = 0
        self.steps: list[ObservedStep] = []

    def choose(self, num_decode: int, num_warm: int) -> int:
        self.asked.append((num_decode, num_warm))
        return self.chosen

    def admits_warm(self) -> bool:
        self.num_admissions += 1
        return self.warm

    def goes_cold(self) -> bool:
        return self.cold_now

    def observe(self, step: ObservedStep) -> None:
        self.steps.append(step)


def start(drafts: SchedulerDrafts, num_pages: int = 60, accepts: list[int] | None = None, **config: object) -> Harness:
    harness = Harness(scheduler_config(drafts=drafts, **config), num_pages)
    harness.worker.accepts.extend(accepts or [])
    return harness


def scripted(depth: int = 3, num_pages: int = 60, warm: bool = True, **config: object) -> tuple[Harness, Script]:
    script = Script(depth, warm)
    return Harness(scheduler_config(drafts=chain(depth), **config), num_pages, script), script


# ---- the same tokens, whatever is accepted


@pytest.mark.parametrize("drafts", [chain(1), chain(3), chain(5), tree(2, 2, 5), tree(3, 4, 7), lookup(4)])
@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("steps", [1, 2])
def test_answers_do_not_depend_on_drafts(drafts: SchedulerDrafts, page_size: int, steps: int) -> None:
    for seed, num_accepted in itertools.product(range(3), (None, 0, drafts.shape.depth)):
        config = scheduler_config(drafts=drafts, page_size=page_size, max_steps_in_flight=steps)
        harness = Harness(config, 30 if page_size == 4 else 90, seed=seed)
        if num_accepted is not None:
            harness.worker.accepts.extend([num_accepted] * 1000)
        prompts = {f"r{i}": [0, i % 3] * (i + 1) for i in range(6)}
        for rid, prompt in prompts.items():
            harness.add(rid, prompt, n=2, max_new_tokens=11, top_logprobs=0)
        harness.run()
        for (rid, prompt), choice in itertools.product(prompts.items(), range(2)):
            assert harness.tokens[rid, choice] == expected(prompt, choice=choice, max_new_tokens=11)
            assert harness.finishes[rid, choice] == FinishReason("length")
        assert harness.scheduler.check_integrity() is None


def test_pages_run_out_and_everybody_still_gets_the_whole_answer() -> None:
    harness = start(chain(3), num_pages=13, max_running_requests=4)
    prompts = {f"r{i}": [i] * 5 for i in range(4)}
    for rid, prompt in prompts.items():
        harness.add(rid, prompt, max_new_tokens=25)
    harness.run()
    assert harness.scheduler.counters.num_preemptions > 0
    for rid, prompt in prompts.items():
        assert harness.tokens[rid, 0] == expected(prompt, max_new_tokens=25)


@pytest.mark.parametrize("drafts", [chain(5), tree(3, 4, 12)])
def test_the_longest_possible_request_fits_alone(drafts: SchedulerDrafts) -> None:
    harness = start(drafts, num_pages=5)
    harness.add("a", [1] * 6, max_new_tokens=10)
    harness.run()
    assert harness.tokens["a", 0] == expected([1] * 6, max_new_tokens=10)
    assert harness.scheduler.counters.num_drafts > 0


def test_a_stop_id_in_an_accepted_run_drops_what_comes_after() -> None:
    prompt = [1, 2, 3]
    answer = expected(prompt, max_new_tokens=20)
    stop = next(token for token in answer[2:] if token not in answer[:2])
    at = answer.index(stop)
    harness = start(chain(5), accepts=[5] * 9)
    harness.add("a", prompt, max_new_tokens=20, stop_token_ids=(stop,), top_logprobs=0)
    harness.run()
    assert at in range(2, 6), "inside the first run: 1 token from the prompt, then 6"
    assert harness.tokens["a", 0] == answer[: at + 1]
    assert len(harness.logprobs["a", 0]) == at + 1
    assert harness.finishes["a", 0] == FinishReason("stop", stop)
    assert harness.drafts["a", 0].num_accepted == at, "the stop itself is an accepted draft, later ones do not count"
    assert harness.scheduler.counters.num_generated_tokens == at + 1


def test_an_answer_ends_at_its_length_within_an_accepted_run() -> None:
    """Of two steps in flight the second does not know that the first brings so much."""
    harness = start(chain(3), accepts=[3] * 9)
    harness.add("a", [1, 2, 3], max_new_tokens=7, top_logprobs=0)
    harness.run()
    assert harness.tokens["a", 0] == expected([1, 2, 3], max_new_tokens=7)
    assert harness.drafts["a", 0] == DraftStats(6, (0, 0, 1, 1)), "1 + 4 tokens, then 2 of 4"


# ---- depth and pages


def num_pages_of(harness: Harness) -> int:
    (sequence,) = harness.scheduler._running
    return len(sequence.lease.pages)


def test_pages_are_reserved_for_the_most_that_may_be_accepted() -> None:
    harness = start(chain(3), accepts=[0, 3], page_size=1)
    harness.add("a", [1, 2, 3, 4], max_new_tokens=30)
    harness.plan()
    assert num_pages_of(harness) == 5, "the prompt and its next token"
    harness.plan()
    assert num_pages_of(harness) == 8, "rows 4 to 7: the token after the prompt and three drafts"
    harness.work()
    harness.plan()
    assert num_pages_of(harness) == 12, "5 tokens known, 4 more may come: the step begins at row 8 at most"
    harness.work()  # accepts none: 6 tokens known, and 4 in flight at most
    harness.plan()
    assert num_pages_of(harness) == 13
    harness.work()  # accepts three: 10 tokens known, and 4 in flight at most
    harness.plan()
    assert num_pages_of(harness) == 17


def depths(harness: Harness) -> list[int]:
    return [plan.draft_depths.get(plan.decode[0], 0) for plan in harness.sent_plans if plan.decode]


def test_depth_ends_with_the_tokens_that_may_be_missing() -> None:
    harness = start(chain(3), accepts=[0] * 20, max_steps_in_flight=1)
    harness.add("a", [1, 2, 3, 4], max_new_tokens=6)
    harness.run()
    assert depths(harness) == [3, 3, 2, 1, 0]


@pytest.mark.parametrize(("most", "wanted"), [(0, [0, 0, 0, 0]), (2, [2, 2, 1, 0]), (9, [3, 2, 1, 0])])
def test_a_request_limits_its_own_drafts(most: int, wanted: list[int]) -> None:
    harness = start(chain(3), accepts=[0] * 20, max_steps_in_flight=1)
    harness.add("a", [1, 2, 3, 4], max_new_tokens=5, max_draft_tokens=most)
    harness.run()
    assert depths(harness) == wanted
    assert harness.sent_plans[0].new[0].warm == (most != 0)
    assert (("a", 0) in harness.drafts) == (most != 0)


def test_drafts_take_pages_that_are_left_and_never_anybodys_place() -> None:
    for seed in range(20):
        harness = Harness(scheduler_config(drafts=chain(3), page_size=1), num_pages=33, seed=seed)
        for rid in ("a", "b"):
            harness.add(rid, [1, 2, 3, 4], max_new_tokens=12)
        harness.run()
        assert harness.scheduler.counters.num_preemptions == 0, "2 times 16 rows have 32 pages"


def test_nobody_is_preempted_for_tokens_that_may_not_come() -> None:
    """Nothing is accepted: both need 4 + 13 - 1 rows in the end, though 8 more are asked for as long as there are."""
    harness = start(chain(3), accepts=[0] * 100, num_pages=1 + 2 * 16 + 1, page_size=1)
    for rid in ("a", "b"):
        harness.add(rid, [1, 2, 3, 4], max_new_tokens=40)
    while len(harness.tokens.get(("b", 0), ())) < 13:
        harness.plan()
        harness.work()
    assert harness.scheduler.counters.num_preemptions == 0


def test_a_step_is_planned_as_long_as_a_token_may_be_missing() -> None:
    harness = start(chain(3), accepts=[0] * 20)
    harness.add("a", [1, 2, 3, 4], max_new_tokens=5)
    assert harness.plan() and harness.plan()
    for _ in range(3):
        harness.work()
        assert harness.plan(), "what is in flight may bring all there is to come, or one token"
    harness.run()
    assert depths(harness) == [3, 2, 1, 0]


@pytest.mark.parametrize("limits", [{"num_pages": 6}, {"num_pages": 60, "context_length": 20}])
def test_a_tree_gets_shallower_where_its_rows_do_not_fit(limits: dict[str, int]) -> None:
    harness = start(tree(3, 4, 12), accepts=[0] * 20, max_steps_in_flight=1, **limits)  # 20 rows
    harness.add("a", [1] * 6, max_new_tokens=14)
    harness.run()
    # Depth 1 takes 5 rows, 2 and 3 take 13, from row 6 on.
    assert depths(harness)[:4] == [3, 3, 1, 1]
    assert harness.tokens["a", 0] == expected([1] * 6, max_new_tokens=14)


# ---- who shares which pages

PROMPT = [1, 2, 3, 4, 0, 1, 2, 3, 4]


def test_siblings_share_the_prompt_that_the_first_choice_computed() -> None:
    harness = start(chain(3))
    harness.add("a", PROMPT, n=3)
    harness.run()
    for choice in range(3):
        assert harness.tokens["a", choice] == expected(PROMPT, choice=choice)
    assert [harness.num_cached["a", choice] for choice in range(3)] == [0, 8, 8]


@pytest.mark.parametrize("drafts", [chain(3), lookup(3)])
def test_a_conversation_reuses_the_answer_of_the_turn_before(drafts: SchedulerDrafts) -> None:
    harness = start(drafts)
    harness.add("one", [1, 2, 3, 4], max_new_tokens=9)
    harness.run()
    harness.add("two", [1, 2, 3, 4, *harness.tokens["one", 0], 2, 2])
    harness.run()
    assert harness.num_cached["two", 0] == 12, "13 tokens, of which the last has no KV: three whole pages"


def test_a_page_whose_successor_differs_is_computed_again() -> None:
    for drafts, num_cached in ((chain(3), 4), (lookup(3), 8)):
        harness = start(drafts)
        harness.add("one", PROMPT)
        harness.run()
        harness.add("two", [*PROMPT[:8], 0, 0])
        harness.run()
        assert harness.num_cached["two", 0] == num_cached


def test_a_page_that_ends_where_a_stop_string_cut_keeps_the_successor_it_was_computed_with() -> None:
    answer = expected([1, 2, 3, 4], max_new_tokens=20)
    for successor, num_cached in ((answer[4], 8), ((answer[4] + 1) % VOCAB_SIZE, 4)):
        harness = start(chain(3), accepts=[3] * 9)
        harness.add("a", [1, 2, 3, 4], max_new_tokens=20)
        while len(harness.tokens.get(("a", 0), ())) < 9:
            harness.plan()
            harness.work()
        harness.send(FinishChoice("a", 0, num_tokens=4))
        harness.run()
        harness.add("b", [1, 2, 3, 4, *answer[:4], successor, 0, 0, 0, 0])
        harness.run()
        assert harness.num_cached["b", 0] == num_cached


def test_pages_without_the_drafts_kv_serve_cold_requests_only() -> None:
    harness, script = scripted()
    harness.add("unspeculative", PROMPT, max_draft_tokens=0)
    harness.run()
    harness.add("warm", PROMPT)
    harness.run()
    harness.add("warm again", PROMPT)
    harness.add("unspeculative again", PROMPT, max_draft_tokens=0)
    harness.run()
    cached = {rid: harness.num_cached[rid, 0] for rid in ("unspeculative", "warm", "warm again", "unspeculative again")}
    assert cached == {"unspeculative": 0, "warm": 0, "warm again": 8, "unspeculative again": 8}
    assert script.num_admissions == 2, "it is not asked about those that can never be warm"
    shared = {new.pages[0] for plan in harness.sent_plans for new in plan.new}
    assert len(shared) == 2, "the valid page is preferred to the other"


def test_a_sequence_goes_cold_in_its_run_and_its_later_pages_are_not_valid() -> None:
    harness, script = scripted(max_steps_in_flight=1)
    harness.add("a", [1, 2, 3, 4], max_new_tokens=20)
    while len(harness.tokens.get(("a", 0), ())) < 5:
        harness.plan()
        harness.work()
    num_before = 4 + len(harness.tokens["a", 0])
    script.cold_now = True
    harness.plan()
    script.cold_now = False
    assert harness.sent_plans[-1].cold == harness.sent_plans[-1].decode and not harness.sent_plans[-1].draft_depths
    harness.run()
    assert not any(plan.cold or plan.draft_depths for plan in harness.sent_plans[-9:]), "once, and never warm again"
    assert harness.tokens["a", 0] == expected([1, 2, 3, 4], max_new_tokens=20)
    history = [1, 2, 3, 4, *harness.tokens["a", 0], 0, 0]
    harness.add("warm", history)
    harness.run()
    assert harness.num_cached["warm", 0] == (num_before - 1) // 4 * 4
    script.warm = False
    harness.add("cold", [*history[:24], 1])
    harness.run()
    assert harness.num_cached["cold", 0] == 20


def test_one_that_goes_cold_and_loses_its_slot_in_the_same_plan() -> None:
    num_together = 0
    for cold_plan in range(40):
        harness, script = scripted(num_pages=13, max_running_requests=4)
        for i in range(4):
            harness.add(f"r{i}", [i] * 5, max_new_tokens=25)
        for plan in range(60):
            script.cold_now = plan == cold_plan
            num_preemptions = harness.scheduler.counters.num_preemptions
            harness.plan()
            num_together += script.cold_now and harness.scheduler.counters.num_preemptions > num_preemptions
            harness.work()
        harness.run()
        for i in range(4):
            assert harness.tokens[f"r{i}", 0] == expected([i] * 5, max_new_tokens=25)
    assert num_together > 0


def test_admitted_cold_and_warm_after_a_preemption() -> None:
    harness, script = scripted(num_pages=13, max_running_requests=4, warm=False)
    for i in range(4):
        harness.add(f"r{i}", [i] * 5, max_new_tokens=25)
    while not harness.scheduler.counters.num_preemptions:
        harness.plan()
        harness.work()
    assert not any(new.warm for plan in harness.sent_plans for new in plan.new)
    script.warm = True
    harness.run()
    assert any(new.warm for plan in harness.sent_plans for new in plan.new)
    assert script.num_admissions == sum(len(plan.new) for plan in harness.sent_plans), "asked for each admission"


# ---- what is counted, and told


def test_verify_steps_are_counted_by_accepted_drafts() -> None:
    harness = start(chain(3), accepts=[3, 1, 0], max_steps_in_flight=1)
    harness.add("a", [1, 2, 3, 4], max_new_tokens=9)
    harness.run()  # 1 + 4 + 2 + 1 tokens, and the last without drafts
    assert harness.drafts["a", 0] == DraftStats(3 + 3 + 1, (1, 1, 0, 1))
    counters = harness.scheduler.counters
    assert (counters.num_drafts, counters.num_draft_tokens, counters.num_accepted_tokens) == (3, 7, 4)
    assert counters.num_accepted_per_position == [2, 1, 1]


def test_a_tree_counts_all_its_nodes_as_drafts() -> None:
    harness = start(tree(2, 2, 5), accepts=[1], max_steps_in_flight=1)
    harness.add("a", [1, 2, 3, 4], max_new_tokens=4)
    harness.run()
    assert harness.drafts["a", 0] == DraftStats(5, (0, 1, 0))


def test_a_status_is_a_snapshot_and_a_flush_forgets_what_was_counted() -> None:
    harness = start(chain(2), accepts=[2, 2])
    before = harness.scheduler.status(0.0)
    harness.add("a", [1, 2, 3, 4])
    harness.send(FlushCache("early", counters=True))
    harness.run()
    harness.send(FlushCache("cache"))
    after = harness.scheduler.status(0.0)
    harness.send(FlushCache("all", counters=True))
    assert before.counters.num_accepted_per_position == [0, 0]
    assert after.counters.num_accepted_per_position[0] >= 1 and after.counters.num_prompt_tokens == 4
    assert harness.scheduler.status(0.0).counters == before.counters
    assert Harness(scheduler_config(), 9).scheduler.status(0.0).draft_depth is None


def test_the_controller_hears_of_every_step() -> None:
    harness, script = scripted(max_steps_in_flight=1)
    harness.worker.accepts.extend([1, 3])
    harness.add("a", [1, 2, 3, 4], max_new_tokens=6)
    harness.add("b", [1, 2], max_new_tokens=6, max_draft_tokens=0)
    for _ in range(3):
        harness.plan()
        harness.work()
    assert script.steps == [
        ObservedStep(0, 0, 0, num_prompt_tokens=6, step_s=0.0, outcomes=[]),
        ObservedStep(2, 1, 3, num_prompt_tokens=0, step_s=0.0, outcomes=[(3, 1)]),
        ObservedStep(2, 1, 3, num_prompt_tokens=0, step_s=0.0, outcomes=[(2, 2)]),
    ]
    assert set(script.asked) == {(2, 1)}
