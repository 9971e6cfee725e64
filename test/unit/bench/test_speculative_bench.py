"""Two servers take the same requests in turns; their figures are told apart and put side by side."""

import asyncio
import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console

from slipstream.bench.request_record import RequestRecord
from slipstream.bench.serving import Case
from slipstream.bench.speculative import (
    DraftCase,
    ResolvedCase,
    Side,
    cases,
    check_options,
    plain_options,
    run_in_turns,
    split_turns,
    to_speculative_row,
)
from slipstream.bench.tables import speculative_tables
from slipstream.config.drafting import DraftShape
from slipstream.config.options import LaunchOptions
from slipstream.errors import ConfigError
from slipstream.messages.sampling import DraftStats

CASE = Case(concurrency=1, request_rate=None, timeout_s=30.0)
CHAIN = ResolvedCase(DraftShape(depth=3, topk=1, num_nodes=3), adaptive=False, dtype="bfloat16")


def side(name: str, log: list[str], seconds: float, accepted: tuple[int, ...], count: int = 12) -> Side:
    """Answers of 10 tokens, each after `seconds`."""

    async def send(record: RequestRecord) -> None:
        log.append(name)
        await asyncio.sleep(seconds)
        record.num_tokens, record.prompt_len, record.finish = 10, 7, "length"
        record.drafts = DraftStats(3 * sum(accepted), accepted) if accepted else None
        record.end(record.started_s + seconds)

    return Side([send] * count)


@pytest.mark.parametrize(("num_requests", "concurrency"), [(1, 1), (7, 1), (100, 1), (101, 3), (64, 16), (5, 16)])
def test_turns_hold_every_request_once(num_requests: int, concurrency: int) -> None:
    turns = split_turns(num_requests, concurrency)
    assert [index for turn in turns for index in range(num_requests)[turn]] == list(range(num_requests))
    assert len(turns) <= 10
    if len(turns) > 1:
        assert all(turn.stop - turn.start >= 4 * concurrency for turn in turns)


async def test_each_server_goes_first_in_turn() -> None:
    log: list[str] = []
    drafting, plain = side("drafting", log, 0, ()), side("plain", log, 0, ())
    await run_in_turns(CASE, drafting, plain, lambda: None)
    plain_turn, drafting_turn = ["plain"] * 4, ["drafting"] * 4
    assert log == [*plain_turn, *drafting_turn, *drafting_turn, *plain_turn, *plain_turn, *drafting_turn]
    assert drafting.turn_tokens == plain.turn_tokens == [40, 40, 40]


async def test_row() -> None:
    log: list[str] = []
    drafting, plain = side("drafting", log, 0.005, (1, 0, 2, 1)), side("plain", log, 0.02, ())
    await run_in_turns(CASE, drafting, plain, lambda: None)
    row = to_speculative_row(CASE, "source", CHAIN, drafting, plain, engine="e", model="m")
    assert row.accepted == [12, 0, 24, 12] and row.position_rates == [0.75, 0.75, 0.25]
    assert row.acceptance_length == pytest.approx(1 + (2 * 24 + 3 * 12) / 48)
    assert row.decode_tok_s == pytest.approx(120 / sum(drafting.turns_s))
    assert row.plain_tok_s == pytest.approx(120 / sum(plain.turns_s))
    assert row.ratio == pytest.approx(row.decode_tok_s / row.plain_tok_s)
    assert row.ratio > 1.5 and len(row.turn_ratios) == 3  # 4 without what a timer adds
    assert (row.num_steps, row.topk, row.adaptive, row.input_len, row.output_len) == (3, 1, False, 7, 10)


async def test_failures_of_both_servers_are_counted() -> None:
    async def fail(record: RequestRecord) -> None:
        record.error = "HTTP 503: full"
        record.end(record.started_s)

    drafting, plain = side("drafting", [], 0, (), count=2), Side([fail] * 2)
    await run_in_turns(CASE, drafting, plain, lambda: None)
    row = to_speculative_row(CASE, "source", CHAIN, drafting, plain, engine="e", model="m")
    assert (row.num_failed, row.failures, row.plain_failures) == (0, {}, {"HTTP 503: full": 2})
    assert row.plain_tok_s is None and row.ratio is None and row.acceptance_length is None


def test_options_of_the_servers() -> None:
    base = LaunchOptions(
        model_path="m", dtype="float32", speculative_draft_model_path="d", speculative_algorithm="EAGLE",
        simulate_acceptance_length=2.0,
    )  # fmt: skip
    assert plain_options(base) == LaunchOptions(model_path="m", dtype="float32", speculative_algorithm="none")
    assert DraftCase().options(base) == base
    assert DraftCase(5, 4).options(base) == dataclasses.replace(
        base, speculative_num_steps=5, speculative_eagle_topk=4, speculative_adaptive="off"
    )
    assert cases([1, 3], [1, 4]) == [DraftCase(1, 1), DraftCase(3, 1), DraftCase(1, 4), DraftCase(3, 4), DraftCase()]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"speculative_num_steps": 2}, "--speculative-num-steps is set for each server"),
        ({"speculative_adaptive": "on"}, "--speculative-adaptive is set for each server"),
        ({"speculative_algorithm": "none"}, "nothing to compare"),
    ],
)
def test_options_that_belong_to_the_cases(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        check_options(LaunchOptions(**values))


async def test_the_table_fits_a_terminal() -> None:
    log: list[str] = []
    drafting, plain = side("drafting", log, 0, (1, 0, 2, 1)), side("plain", log, 0, ())
    await run_in_turns(CASE, drafting, plain, lambda: None)
    row = to_speculative_row(CASE, "source", CHAIN, drafting, plain, engine="e", model="m")
    rates = [0.9, 0.72, 0.48, 0.3, 0.11]
    row = dataclasses.replace(row, num_steps=5, adaptive=True, position_rates=rates, tpot_ms=123.4)
    row = dataclasses.replace(row, decode_tok_s=1234.5, plain_tok_s=876.5, plain_tpot_ms=234.5, ratio=1.41)
    console = Console(width=80, file=io.StringIO(), record=True)
    for table in speculative_tables([row]):
        console.print(table)
    text = console.export_text()
    assert "acceptance" in text and "K up to 5, adaptive" in text and "90 72 48 30 11" in text
    assert "123.40" in text and "1,234.5" in text and "…" not in text
