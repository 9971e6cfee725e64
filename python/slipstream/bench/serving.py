"""Load on a server: many streamed requests, as fast as they are answered or as they arrive."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass

from slipstream.bench.request_record import RequestRecord
from slipstream.bench.rows import ServingRow
from slipstream.bench.statistics import Summary, summarize

Send = Callable[[RequestRecord], Awaitable[None]]
"""Sends one request and fills in its record; never raises for what the server does."""

MAX_FAILURE_CHARACTERS = 120


@dataclass(frozen=True)
class Case:
    """`concurrency` bounds the requests at once; `request_rate` makes them arrive by the clock, per second."""

    concurrency: int | None
    request_rate: float | None
    timeout_s: float


async def run_case(
    case: Case, sends: Sequence[Send], arrivals_s: Sequence[float] | None, on_end: Callable[[], None] = lambda: None
) -> tuple[list[RequestRecord], float]:
    """Run every request; returns their records and the seconds it took.

    Without arrivals a request starts as soon as one of `concurrency` places is free, and its clock starts then. With
    arrivals its clock starts when it arrives, so that waiting for a place counts. What is unfinished after `timeout_s`
    is cancelled and counts as failed.
    """
    places: AbstractAsyncContextManager[None] = (
        nullcontext() if case.concurrency is None else asyncio.Semaphore(case.concurrency)
    )
    started_s = time.perf_counter()
    records = [RequestRecord(started_s) for _ in sends]

    async def run(index: int) -> None:
        record = records[index]
        if arrivals_s is not None:
            record.started_s = started_s + arrivals_s[index]
            await asyncio.sleep(max(0.0, record.started_s - time.perf_counter()))
        async with places:
            if arrivals_s is None:
                record.started_s = time.perf_counter()
            await sends[index](record)
        on_end()

    tasks = [asyncio.create_task(run(index)) for index in range(len(sends))]
    _, late = await asyncio.wait(tasks, timeout=case.timeout_s)
    duration_s = time.perf_counter() - started_s
    for task in late:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()  # an error of ours must not pass for one of the server
    for record in records:
        if record.ended_s is None:
            record.error = f"not finished within {case.timeout_s:g} s"
    return records, duration_s


def to_row(
    case: Case,
    records: Sequence[RequestRecord],
    duration_s: float,
    *,
    engine: str,
    model: str,
    input_len: int | None,
    output_len: int | None,
) -> ServingRow:
    """The figures of one case. `input_len` and `output_len` are None where the requests differ: then means are shown.

    Times are of the requests that succeeded; the others are counted by what went wrong.
    """
    good = [record for record in records if record.ok]
    failures = Counter((record.error or "unfinished")[:MAX_FAILURE_CHARACTERS] for record in records if not record.ok)
    num_tokens = sum(record.num_tokens for record in good)
    ttft = summarize([ttft_s for record in good if (ttft_s := record.ttft_s) is not None])
    tpot = summarize([1000 * tpot_s for record in good if (tpot_s := record.tpot_s) is not None])
    accepted = summarize([length for record in good if (length := record.acceptance_length) is not None])
    return ServingRow(
        engine=engine,
        model=model,
        batch_size=case.concurrency,
        input_len=input_len if input_len is not None else _mean([record.prompt_len for record in good]),
        output_len=output_len if output_len is not None else _mean([record.num_tokens for record in good]),
        ttft_s=_mean_of(ttft),
        tpot_ms=_mean_of(tpot),
        decode_tok_s=num_tokens / duration_s,
        speculative=accepted is not None,
        acceptance_length=_mean_of(accepted),
        request_rate=case.request_rate,
        concurrency=case.concurrency,
        num_requests=len(records),
        num_failed=len(records) - len(good),
        failures=dict(failures.most_common()),
        duration_s=duration_s,
        requests_per_s=len(good) / duration_s,
        num_cached_tokens=sum(record.num_cached for record in good),
        ttft_s_summary=ttft,
        tpot_ms_summary=tpot,
        e2e_s_summary=summarize([e2e_s for record in good if (e2e_s := record.e2e_s) is not None]),
    )


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0


def _mean_of(summary: Summary | None) -> float | None:
    return summary.mean if summary is not None else None
