"""Time per token by its definition, on an engine whose speed is known."""

import random
import time
from dataclasses import dataclass
from typing import Any

import pytest

from slipstream.bench.one_batch import Shape, Timing, check_shapes, measure, time_batch
from slipstream.errors import ConfigError, SlipstreamError
from slipstream.messages.sampling import DraftStats


@dataclass
class FakeAnswer:
    token_ids: list[int]
    num_cached: int = 0
    drafts: DraftStats | None = None


class FakeEngine:
    """Takes 0.5 s for the first token of a batch and 10 ms for each further one, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.prompts: list[list[int]] = []
        self.shortfall = self.num_cached = 0
        self.drafts = False
        monkeypatch.setattr(time, "perf_counter", lambda: self.now_s)

    def generate(self, prompts: Any, sampling_params: Any = None) -> Any:
        assert sampling_params["temperature"] == 0 and sampling_params["ignore_eos"] is True
        num_tokens = sampling_params["max_new_tokens"] - self.shortfall
        self.now_s += 0.5 + 0.01 * (num_tokens - 1)
        self.prompts += prompts
        drafts = DraftStats(3 * num_tokens, (0, num_tokens)) if self.drafts else None
        return [FakeAnswer([7] * num_tokens, self.num_cached, drafts) for _ in prompts]


def test_times_of_a_known_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(monkeypatch)
    shape, steps = Shape(4, 32, 65), []
    timing = measure(
        engine, shape, token_ids=range(100), num_runs=3, rng=random.Random(0), on_run=lambda: steps.append(1)
    )
    assert timing.ttft_s == pytest.approx(0.5) and timing.tpot_s == pytest.approx(0.01)
    assert len(timing.one_token_s) == len(timing.all_tokens_s) == 3
    assert len(steps) == 7  # a warm-up and three pairs
    assert len({tuple(prompt) for prompt in engine.prompts}) == 4 * 7  # fresh ones each time


def test_verify_steps_of_the_timed_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(monkeypatch)
    timing = measure(engine, Shape(4, 32, 65), token_ids=range(9), num_runs=3, rng=random.Random(0))
    assert timing.drafts.accepted == () and timing.drafts.acceptance_length is None
    engine.drafts = True
    timing = measure(engine, Shape(4, 32, 65), token_ids=range(9), num_runs=3, rng=random.Random(0))
    num_verify = 3 * 4 * (1 + 65)
    assert timing.drafts == DraftStats(3 * num_verify, (0, num_verify)) and timing.drafts.acceptance_length == 2


def test_best_and_median() -> None:
    timing = Timing(Shape(1, 8, 11), one_token_s=(0.3, 0.1, 0.2), all_tokens_s=(1.4, 1.1, 1.2))
    assert timing.ttft_s == 0.1 and timing.ttft_median_s == 0.2
    assert timing.tpot_s == pytest.approx((1.1 - 0.1) / 10)
    assert timing.tpot_median_s == pytest.approx((1.2 - 0.2) / 10)


def test_noise_gives_no_time_per_token() -> None:
    timing = Timing(Shape(1, 8, 3), one_token_s=(0.5, 0.6), all_tokens_s=(0.4, 0.7))
    assert timing.tpot_s is None and timing.tpot_median_s is None


def test_one_token_is_a_prefill_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(monkeypatch)
    timing = measure(engine, Shape(2, 32, 1), token_ids=range(9), num_runs=3, rng=random.Random(0))
    assert timing.ttft_s == 0.5 and timing.all_tokens_s == () and len(engine.prompts) == 2 * (1 + 3)
    assert timing.tpot_s is None and timing.tpot_median_s is None


def test_short_or_cached_answers_are_no_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(monkeypatch)
    engine.num_cached = 16
    with pytest.raises(SlipstreamError, match="prefix cache"):
        time_batch(engine, [[1, 2]], 8)
    engine.num_cached, engine.shortfall = 0, 1
    with pytest.raises(SlipstreamError, match="7 tokens instead of 8"):
        time_batch(engine, [[1, 2]], 8)


@pytest.mark.parametrize(
    ("shape", "complaint"),
    [
        (Shape(1, 8, 0), "--output-len must be at least 1"),
        (Shape(1, 60, 10), "70 tokens; the context holds 64"),
        (Shape(5, 8, 8), "--max-running-requests"),
    ],
)
def test_shapes_that_cannot_be_measured(shape: Shape, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        check_shapes([shape], context_length=64, max_running_requests=4)
