"""One batch at a time through the Engine: time to the first token, and time for each further token."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from slipstream.bench.workload import random_prompts
from slipstream.errors import ConfigError, SlipstreamError
from slipstream.messages.sampling import DraftStats

WARM_UP_OUTPUT_LEN = 8  # enough for a prefill step and some decode steps of the shape


class BatchEngine(Protocol):
    """What is measured: an Engine, or anything that answers batches of token ids as it does."""

    def generate(self, prompts: Any, sampling_params: Any = None) -> Any:
        """The answers to prompts given as lists of token ids."""
        ...


@dataclass(frozen=True)
class Shape:
    """One case: `batch_size` prompts of `input_len` tokens, each answered with `output_len` tokens.

    With an output_len of 1 only the time to the first token can be measured.
    """

    batch_size: int
    input_len: int
    output_len: int


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of every run, for one token for each request and for all of them."""

    shape: Shape
    one_token_s: tuple[float, ...]
    all_tokens_s: tuple[float, ...]  # none where one token is all
    drafts: DraftStats = DraftStats(0, ())  # of the timed runs

    @property
    def ttft_s(self) -> float:
        """Best time until every request of the batch has its first token."""
        return min(self.one_token_s)

    @property
    def tpot_s(self) -> float | None:
        """Best time for each further token: (all tokens - one token) / (output_len - 1).

        None without further tokens, and when a run for all tokens was faster than one for a single token: the machine
        is too busy to measure.
        """
        return self._per_token(min)

    @property
    def ttft_median_s(self) -> float:
        return statistics.median(self.one_token_s)

    @property
    def tpot_median_s(self) -> float | None:
        return self._per_token(statistics.median)

    def _per_token(self, typical: Callable[[Sequence[float]], float]) -> float | None:
        if not self.all_tokens_s:
            return None
        further_s = typical(self.all_tokens_s) - typical(self.one_token_s)
        return further_s / (self.shape.output_len - 1) if further_s > 0 else None


def check_shapes(shapes: Sequence[Shape], *, context_length: int, max_running_requests: int) -> None:
    """Raise ConfigError for a shape that the engine would cut short or run in several batches."""
    for shape in shapes:
        if min(shape.batch_size, shape.input_len, shape.output_len) < 1:
            raise ConfigError("--batch-size, --input-len and --output-len must be at least 1")
        if shape.input_len + shape.output_len > context_length:
            raise ConfigError(
                f"--input-len {shape.input_len} plus --output-len {shape.output_len} is "
                f"{shape.input_len + shape.output_len} tokens; the context holds {context_length}"
            )
        if shape.batch_size > max_running_requests:
            raise ConfigError(
                f"--batch-size is {shape.batch_size}, but only {max_running_requests} requests run at once; "
                "raise --max-running-requests"
            )


def measure(
    engine: BatchEngine,
    shape: Shape,
    *,
    token_ids: Sequence[int],
    num_runs: int,
    rng: random.Random,
    on_run: Callable[[], None] = lambda: None,
) -> Timing:
    """Warm the shape up once, then time it `num_runs` times. Every run has fresh prompts: no cache can help."""
    drafts: list[DraftStats] = []

    def timed(output_len: int) -> float:
        prompts = random_prompts(rng, token_ids, shape.batch_size, shape.input_len)
        elapsed_s, stats = time_batch(engine, prompts, output_len)
        drafts.append(stats)
        on_run()
        return elapsed_s

    timed(min(WARM_UP_OUTPUT_LEN, shape.output_len))
    drafts.clear()
    one_token_s, all_tokens_s = [], []
    for _ in range(num_runs):
        one_token_s.append(timed(1))
        if shape.output_len > 1:
            all_tokens_s.append(timed(shape.output_len))
    return Timing(shape, tuple(one_token_s), tuple(all_tokens_s), DraftStats.total(drafts))


def time_batch(engine: BatchEngine, prompts: list[list[int]], output_len: int) -> tuple[float, DraftStats]:
    """Seconds until all prompts have exactly `output_len` tokens, and what their drafts brought.

    Raises SlipstreamError when an answer differs.
    """
    started_s = time.perf_counter()
    answers = engine.generate(prompts, {"max_new_tokens": output_len, "temperature": 0, "ignore_eos": True})
    elapsed_s = time.perf_counter() - started_s
    for answer in answers:
        if len(answer.token_ids) != output_len:
            raise SlipstreamError(f"an answer has {len(answer.token_ids)} tokens instead of {output_len}: no measure")
        if answer.num_cached:
            raise SlipstreamError(f"{answer.num_cached} prompt tokens came from the prefix cache: no measure")
    return elapsed_s, DraftStats.total(answer.drafts for answer in answers if answer.drafts is not None)
