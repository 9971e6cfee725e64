"""The embedded pair with a prefix cache: pages keep the acceptance length, whoever made them; re-feeding earns it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from slipstream import Engine
from slipstream.cache.page_cache import PageCache
from slipstream.engine import Answer
from slipstream.scheduler.draft_controller import DraftController
from slipstream.speculative.base import Committed
from slipstream.speculative.draft_model import DraftModelSpeculator
from support.embedded_prompts import long_question, source
from support.one_core import one_core

NUM_PROMPTS = 20
NUM_TOKENS = 20
PROMPTS: list[Any] = [source(i, 760) if i % 2 else long_question(i) for i in range(NUM_PROMPTS)]
GREEDY = {"temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    with one_core():
        yield


@pytest.fixture(scope="module", params=[16, 1], ids=["page 16", "page 1"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with make_engine(page_size=request.param) as engine:
        yield engine


def make_engine(**options: Any) -> Engine:
    return Engine(
        dtype="float32", speculative_num_steps=3, speculative_adaptive="off", max_running_requests=8, **options
    )


@dataclass(frozen=True)
class Served:
    """All prompts, answered once."""

    answers: list[Answer]

    @property
    def token_ids(self) -> list[list[int]]:
        return [answer.token_ids for answer in self.answers]

    @property
    def length(self) -> float:
        """Acceptance length over all of them."""
        drafts = [answer.drafts for answer in self.answers]
        assert all(stats is not None for stats in drafts)
        return 1 + sum(stats.num_accepted for stats in drafts if stats) / self.num_verify

    @property
    def num_verify(self) -> int:
        return sum(answer.drafts.num_verify for answer in self.answers if answer.drafts is not None)

    def least_cached(self, page_size: int) -> float:
        """Share of a prompt's whole pages that were cached, where it is least."""
        return min(a.num_cached / (a.prompt_len // page_size * page_size) for a in self.answers)


def serve(
    engine: Engine, prompts: Sequence[Any] = PROMPTS, num_tokens: int = NUM_TOKENS, speculative: bool = True
) -> Served:
    return Served(engine.generate(list(prompts), GREEDY | {"max_new_tokens": num_tokens}, speculative=speculative))


def page_size_of(engine: Engine) -> int:
    return engine.resolved.worker.page_size


@pytest.fixture(scope="module")
def cold(engine: Engine) -> Served:
    """With an empty cache."""
    engine.flush_cache()
    found = serve(engine)
    assert min(answer.prompt_len for answer in found.answers) >= 160
    assert max(answer.num_cached for answer in found.answers) <= 64  # what some have in common
    assert found.length > 1.8
    return found


def test_cached_prompts_keep_their_acceptance(engine: Engine, cold: Served) -> None:
    again = serve(engine)
    assert again.least_cached(page_size_of(engine)) >= 0.9
    assert again.token_ids == cold.token_ids
    assert again.length == pytest.approx(cold.length, rel=0.02)


def test_pages_of_requests_without_drafts_lower_nothing(engine: Engine, cold: Served) -> None:
    engine.flush_cache()
    plain = serve(engine, speculative=False)
    assert plain.token_ids == cold.token_ids and all(answer.drafts is None for answer in plain.answers)
    drafted = serve(engine)
    assert drafted.token_ids == cold.token_ids
    assert drafted.length == pytest.approx(cold.length, rel=0.02)
    # what it computed itself serves everybody from now on
    assert serve(engine, num_tokens=1).least_cached(page_size_of(engine)) >= 0.9
    assert serve(engine, num_tokens=1, speculative=False).least_cached(page_size_of(engine)) >= 0.9


@pytest.mark.parametrize("engine", [16], indirect=True, ids=["page 16"])
def test_pages_of_requests_gone_cold_in_mid_run_lower_nothing(
    engine: Engine, cold: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their prompts and answers are the beginnings of other prompts."""
    prompts = [[*ids, *answer.token_ids] for ids, answer in zip(token_ids(engine), cold.answers, strict=False)]
    engine.flush_cache()
    fresh = serve(engine, prompts)
    engine.flush_cache()
    plans = iter(range(10**9))
    monkeypatch.setattr(DraftController, "goes_cold", lambda controller: next(plans) % 6 == 5)
    half = serve(engine, PROMPTS[: len(prompts)])
    assert half.token_ids == cold.token_ids[: len(prompts)]
    assert 0 < half.num_verify < 0.8 * Served(cold.answers[: len(prompts)]).num_verify, "nobody went cold in mid-run"
    monkeypatch.undo()
    after = serve(engine, prompts)
    assert after.token_ids == fresh.token_ids
    assert after.length == pytest.approx(fresh.length, rel=0.02)
    assert sum(answer.num_cached for answer in after.answers) > 0


def token_ids(engine: Engine) -> list[list[int]]:
    """Half of the prompts as ids."""
    answers = engine.generate(PROMPTS[: NUM_PROMPTS // 2], {"max_new_tokens": 0}, prompt_logprobs_from=0)
    return [[token.token_id for token in answer.prompt_logprobs or ()] for answer in answers]


# ---- tests of the test


@pytest.mark.parametrize("engine", [16], indirect=True, ids=["page 16"])
def test_pages_without_the_drafts_kv_would_lower_it(
    engine: Engine, cold: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparisons above can fail: here the draft reads pages that it has never written."""
    lease = PageCache.lease
    engine.flush_cache()
    serve(engine, num_tokens=1, speculative=False)
    monkeypatch.setattr(PageCache, "lease", lambda cache, key, match=True, valid_only=False: lease(cache, key, match))
    monkeypatch.setattr(PageCache, "publish", lambda *args: None)  # valid pages below others are no state of the tree
    spoiled = serve(engine)
    assert spoiled.token_ids == cold.token_ids
    assert spoiled.length < 0.9 * cold.length


def stop_refeeding(patch: pytest.MonkeyPatch) -> None:
    """Of each run only the row before the bonus token is computed. The verified drafts keep what drafting left: rows
    from the draft's own hidden states, and after the last draft of a full path none.
    """
    extend = DraftModelSpeculator.extend

    def extending(self: DraftModelSpeculator, committed: Committed) -> None:
        skipped = [
            num_rows - 1 if index < committed.num_decode else 0 for index, num_rows in enumerate(committed.num_rows)
        ]
        rows: list[int] = []
        begin = 0
        for num_rows, skip in zip(committed.num_rows, skipped, strict=True):
            rows.extend(range(begin + skip, begin + num_rows))
            begin += num_rows
        starts = tuple(start + skip for start, skip in zip(committed.starts, skipped, strict=True))
        self._num_rows.update(zip(committed.slots, starts, strict=True))
        changed = replace(
            committed,
            starts=starts,
            num_rows=tuple(count - skip for count, skip in zip(committed.num_rows, skipped, strict=True)),
            successors=committed.successors[rows],
            hidden=committed.hidden[rows],
        )
        extend(self, changed)

    patch.setattr(DraftModelSpeculator, "extend", extending)


def test_refeeding_verified_rows_earns_acceptance(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [source(i, 300) for i in range(NUM_PROMPTS)]
    with make_engine(page_size=16) as engine:
        usual = serve(engine, prompts, num_tokens=64)
        stop_refeeding(monkeypatch)
        engine.flush_cache()
        spoiled = serve(engine, prompts, num_tokens=64)
    assert spoiled.token_ids == usual.token_ids
    assert spoiled.length < 0.97 * usual.length
