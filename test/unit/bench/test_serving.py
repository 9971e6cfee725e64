"""The load generator: its limits hold, its clock is fair, its failures are counted."""

import asyncio
from pathlib import Path

import pytest

from slipstream.bench.request_record import RequestRecord
from slipstream.bench.rows import ServingRow, append_row, read_rows
from slipstream.bench.serving import Case, run_case, to_row

REQUIRED = {
    "engine", "model", "batch_size", "input_len", "output_len", "ttft_s", "tpot_ms", "decode_tok_s", "speculative",
    "acceptance_length",
}  # fmt: skip


def finished(started_s: float, *, ttft_s: float, tpot_s: float, num_tokens: int) -> RequestRecord:
    last_s = started_s + ttft_s + tpot_s * (num_tokens - 1)
    return RequestRecord(
        started_s, first_token_s=started_s + ttft_s, last_token_s=last_s, ended_s=last_s, num_first_tokens=1,
        num_tokens=num_tokens, prompt_len=16, finish="length",
    )  # fmt: skip


def row_of(records: list[RequestRecord], duration_s: float) -> ServingRow:
    case = Case(concurrency=2, request_rate=None, timeout_s=9.0)
    return to_row(case, records, duration_s, engine="e", model="m", input_len=16, output_len=None)


async def test_no_more_requests_at_once_than_allowed() -> None:
    running, most = 0, 0

    async def send(record: RequestRecord) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        record.finish = "length"
        record.end(record.started_s)

    ended = []
    records, _ = await run_case(Case(3, None, 10.0), [send] * 20, None, lambda: ended.append(1))
    assert most == 3
    assert len(ended) == 20 and all(record.ok for record in records)


async def test_the_clock_of_an_arrival_runs_while_it_waits_for_a_place() -> None:
    begun = []

    async def send(record: RequestRecord) -> None:
        begun.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.05)
        record.finish = "length"
        record.end(record.started_s)

    arrivals_s = [0.0, 0.01, 0.02]
    records, duration_s = await run_case(Case(1, 100.0, 10.0), [send] * 3, arrivals_s)
    first_s = records[0].started_s
    assert [record.started_s - first_s for record in records] == pytest.approx(arrivals_s)
    assert begun[2] - begun[0] >= 0.09
    assert duration_s >= 0.15


async def test_unfinished_requests_are_cancelled_and_counted() -> None:
    cancelled = []

    async def send(record: RequestRecord) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(record)
            raise

    records, duration_s = await run_case(Case(2, None, 0.05), [send] * 3, None)
    assert duration_s < 5
    assert len(cancelled) == 2  # the third had no place yet
    assert {record.error for record in records} == {"not finished within 0.05 s"}
    row = row_of(records, duration_s)
    assert (row.num_failed, row.failures) == (3, {"not finished within 0.05 s": 3})
    assert (row.ttft_s, row.tpot_ms, row.decode_tok_s) == (None, None, 0.0)


async def test_a_bug_in_the_benchmark_is_not_a_failed_request() -> None:
    async def send(record: RequestRecord) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run_case(Case(1, None, 1.0), [send], None)


def test_row(tmp_path: Path) -> None:
    good = [finished(float(i), ttft_s=0.1 * (i + 1), tpot_s=0.01, num_tokens=10 + i) for i in range(4)]
    bad = RequestRecord(0.0, ended_s=1.0, error="HTTP 503: the queue is full", num_tokens=1000)
    row = row_of([*good, bad, bad], duration_s=2.0)
    append_row(str(tmp_path / "rows.jsonl"), row)
    [value] = read_rows(tmp_path / "rows.jsonl")
    assert value.keys() >= REQUIRED
    assert value["ttft_s"] == pytest.approx(0.25) and value["tpot_ms"] == pytest.approx(10)
    assert value["decode_tok_s"] == pytest.approx((10 + 11 + 12 + 13) / 2)
    assert value["output_len"] == 11.5 and value["input_len"] == 16
    assert value["failures"] == {"HTTP 503: the queue is full": 2} and value["num_failed"] == 2
    assert value["requests_per_s"] == 2.0
    assert value["ttft_s_summary"]["p50"] == pytest.approx(0.25)
    assert value["speculative"] is False and value["acceptance_length"] is None


def test_acceptance_length_comes_from_the_server() -> None:
    records = [finished(0.0, ttft_s=0.1, tpot_s=0.01, num_tokens=9) for _ in range(2)]
    records[0].acceptance_length, records[1].acceptance_length = 2.0, 3.0
    row = row_of(records, 1.0)
    assert row.speculative and row.acceptance_length == 2.5
