"""What the scheduler may rely on: ranges, the warm and cold regime, scouts, and a controller that does not adapt."""

import random

import pytest

from slipstream.config.drafting import DraftShape
from slipstream.scheduler.draft_controller import DraftController, ObservedStep

CHAIN = DraftShape(depth=3, topk=1, num_nodes=3)


def serve(
    controller: DraftController,
    num_steps: int,
    num_accepted: int,
    *,
    batch: int = 16,
    num_warm: int | None = None,
    step_s: float = 0.013,
) -> list[int]:
    """Steps with `num_warm` warm slots (all) in which each accepts so many drafts; depths cost half a step each."""
    depths = []
    warm = batch if num_warm is None else num_warm
    for _ in range(num_steps):
        depth = controller.choose(batch, warm)
        outcomes = [(depth, min(depth, num_accepted))] * (warm if depth else 0)
        cost = step_s * (1 + (0.1 + 0.5 * depth) * warm / batch)
        controller.observe(ObservedStep(batch, warm, depth, 0, cost, outcomes))
        depths.append(depth)
    return depths


def gone_cold(*, adaptive: bool = True) -> DraftController:
    controller = DraftController(CHAIN, adaptive, has_kv=True)
    for _ in range(130):
        serve(controller, 1, 0)
        if controller.goes_cold():
            break
    else:
        raise AssertionError("never went cold")
    serve(controller, 20, 0, num_warm=0)
    return controller


def test_not_adaptive_is_always_full_depth_and_warm() -> None:
    controller = DraftController(CHAIN, adaptive=False, has_kv=True)
    assert serve(controller, 300, 0) == [3] * 300
    assert controller.depth == 3
    assert controller.admits_warm()
    assert not controller.goes_cold()
    assert controller.choose(4, 0) == 0, "there is nobody to draft for"


def test_depth_is_full_before_anything_is_known_and_shown_as_chosen() -> None:
    controller = DraftController(CHAIN, adaptive=True, has_kv=True)
    assert controller.depth == 3
    assert controller.choose(1, 1) == 3
    assert controller.choose(2, 0) == 0
    assert controller.depth == 0


def test_full_acceptance_keeps_full_depth_and_all_warm() -> None:
    controller = DraftController(CHAIN, adaptive=True, has_kv=True)
    depths = serve(controller, 1000, 3)
    assert depths[30:].count(3) > 0.95 * 970
    assert controller.admits_warm()
    assert not controller.goes_cold()


def test_no_acceptance_ends_drafting_within_a_few_steps_and_then_the_re_feed() -> None:
    controller = DraftController(CHAIN, adaptive=True, has_kv=True)
    depths = serve(controller, 60, 0)
    assert sum(depth > 0 for depth in depths) <= 10
    assert controller.goes_cold()
    assert not controller.goes_cold(), "said once"


def test_while_cold_one_scout_at_a_time_is_warm_and_only_when_it_can_be_paid() -> None:
    controller = gone_cold()
    waits = []
    for _ in range(5):
        wait = 0
        while not controller.admits_warm():
            serve(controller, 1, 0, num_warm=0)
            wait += 1
        waits.append(wait)
        assert not controller.admits_warm(), "one is enough"
        depths = []
        while not controller.goes_cold():
            depths += serve(controller, 1, 0, num_warm=1)
            assert len(depths) < 20
        assert set(depths) <= {0, 1}
        assert sum(depths) <= 8
    assert all(100 < wait < 200 for wait in waits[1:])


def test_a_scout_that_does_well_brings_drafting_back() -> None:
    controller = gone_cold()
    while not controller.admits_warm():
        serve(controller, 1, 3, num_warm=0)
    depths = serve(controller, 20, 3, num_warm=1)
    assert depths[:12] == [1] * 12
    assert controller.admits_warm() and controller.admits_warm()
    assert not controller.goes_cold()
    assert set(serve(controller, 40, 3)[20:]) == {3}


def test_a_scout_that_never_decodes_is_given_up_and_replaced() -> None:
    controller = gone_cold()
    while not controller.admits_warm():
        serve(controller, 1, 0, num_warm=0)
    serve(controller, 300, 0, num_warm=0)
    assert controller.goes_cold()
    serve(controller, 150, 0, num_warm=0)
    assert controller.admits_warm()


def test_a_scout_that_ends_early_does_not_block_the_next() -> None:
    controller = gone_cold()
    while not controller.admits_warm():
        serve(controller, 1, 0, num_warm=0)
    serve(controller, 3, 1, num_warm=1)
    serve(controller, 300, 0, num_warm=0)
    assert controller.goes_cold()
    for _ in range(200):
        serve(controller, 1, 0, num_warm=0)
        if controller.admits_warm():
            return
    raise AssertionError("no other scout")


def test_a_batch_size_at_which_drafting_pays_is_warm_though_a_larger_one_went_cold() -> None:
    """Half of the first drafts are accepted: too few for a batch of 16, enough for one whose rows cost nothing."""
    controller = DraftController(CHAIN, adaptive=True, has_kv=True)

    def step(batch: int, num_warm: int) -> int:
        depth = controller.choose(batch, num_warm)
        cost = 0.01 * (1 + (0.05 + (0.02 if batch == 1 else 0.6) * depth) * num_warm / batch)
        outcomes = [(depth, slot % 2) for slot in range(num_warm)] if depth else []
        if batch == 1 and depth:
            outcomes = [(depth, rng.randrange(2))]
        controller.observe(ObservedStep(batch, num_warm, depth, 0, cost, outcomes))
        return depth

    rng = random.Random(1)
    alone = [step(1, 1) for _ in range(100)]
    assert min(alone[60:]) > 0
    went_cold = False
    for _ in range(200):
        step(16, 0 if went_cold else 16)
        went_cold = went_cold or controller.goes_cold()
    assert went_cold
    for _ in range(130):
        step(1, 0)
    assert controller.admits_warm() and controller.admits_warm(), "all are, not one as a scout"
    assert [step(1, 1) for _ in range(10)][-1] > 0


def test_without_kv_nothing_goes_cold_and_probing_goes_on() -> None:
    controller = DraftController(CHAIN, adaptive=True, has_kv=False)
    depths = []
    for _ in range(1000):
        depths += serve(controller, 1, 0)
        assert not controller.goes_cold()
        assert controller.admits_warm()
    assert 2 <= sum(depth > 0 for depth in depths[100:]) <= 30
    assert serve(controller, 300, 3)[-50:].count(3) > 45


def test_without_kv_slots_with_nothing_to_propose_count_as_rejected() -> None:
    """One slot of 16 finds drafts, and all of them are right: still not worth what the step costs."""
    controller = DraftController(CHAIN, adaptive=True, has_kv=False)
    depths = []
    for _ in range(200):
        depth = controller.choose(16, 16)
        controller.observe(ObservedStep(16, 16, depth, 0, 0.01 * (1 + 0.2 * depth), [(depth, depth)] if depth else []))
        depths.append(depth)
    assert depths[30:].count(0) > 150


@pytest.mark.parametrize("has_kv", [True, False])
def test_whatever_happens_depths_are_in_range(has_kv: bool) -> None:
    rng = random.Random(11)
    controller = DraftController(DraftShape(depth=5, topk=4, num_nodes=16), adaptive=True, has_kv=has_kv)
    plans: list[ObservedStep] = []
    for _ in range(3000):
        controller.goes_cold()
        num_decode = rng.choice([0, 1, 2, 5, 16, 100])
        num_warm = rng.randint(0, num_decode)
        depth = controller.choose(num_decode, num_warm) if num_decode else 0
        assert 0 <= depth <= (5 if num_warm else 0)
        controller.admits_warm()
        outcomes = [(depth, rng.randint(0, depth)) for _ in range(rng.randint(0, num_warm)) if depth]
        num_prompt_tokens = rng.choice([0, 0, 500])
        plans.append(
            ObservedStep(num_decode, num_warm, depth, num_prompt_tokens, rng.choice([0.0, 1e-4, 0.01, 3.0]), outcomes)
        )
        if len(plans) > 2:
            controller.observe(plans.pop(0))


def test_a_return_that_fails_is_not_repeated_before_its_loss_is_earned_back() -> None:
    """Scouts do well and all others badly: such a return costs a bounded number of steps, then there is a wait."""
    controller = gone_cold()
    num_steps, num_warm_steps = 0, 0
    while num_steps < 3000:
        if not controller.admits_warm():
            serve(controller, 1, 0, num_warm=0)
            num_steps += 1
            continue
        serve(controller, 20, 3, num_warm=1)
        num_steps += 20
        while not controller.goes_cold():
            serve(controller, 1, 0)
            num_steps, num_warm_steps = num_steps + 1, num_warm_steps + 1
            assert num_warm_steps < num_steps
    assert num_warm_steps < 0.1 * num_steps
