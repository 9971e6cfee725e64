"""The object form of a benchmark's figures: one row for each case, in tables and in --output-json."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipstream.bench.statistics import Summary
from slipstream.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Row:
    """What every benchmark reports about one case."""

    engine: str  # name and version
    model: str
    batch_size: int | None  # requests at once; None: as they arrived
    input_len: float  # prompt tokens of each request, on average
    output_len: float  # generated tokens of each request, on average
    ttft_s: float | None  # time to the first token
    tpot_ms: float | None  # time for each further token
    decode_tok_s: float | None  # generated tokens per second of all requests together
    speculative: bool
    acceptance_length: float | None  # tokens for each verify step


@dataclass(frozen=True, kw_only=True)
class OneBatchRow(Row):
    """ttft_s and tpot_ms are the best of the runs; the lists hold every run.

    Floors (floors.py) are None where the device's speed is not known or the model is not dense; that of a token is that
    of a step over the acceptance length, in the middle of the answers.
    """

    date: str
    command: str
    preset: str | None
    in_process: bool
    dtype: str
    device: str
    device_name: str | None
    num_gpus: int
    start_s: float  # from the start of the process until the engine was ready, files of a preset not counted
    ttft_median_s: float
    tpot_median_ms: float | None
    prefill_tok_s: float
    floor_ms: float | None
    floor_percent: float | None  # of tpot_ms
    prefill_floor_ms: float | None
    prefill_floor_percent: float | None  # of ttft_s
    num_drafts: int  # K, 0 without drafts
    simulated_length: float | None  # of acceptance
    step_bytes: float | None  # that a decode step moves at least, and what it computes
    step_flops: float | None
    prefill_bytes: float | None
    prefill_flops: float | None
    one_token_runs_s: list[float]
    all_tokens_runs_s: list[float]  # none with one token


@dataclass(frozen=True, kw_only=True)
class ServingRow(Row):
    """ttft_s and tpot_ms are means over the requests that succeeded; decode_tok_s is the throughput of the run."""

    request_rate: float | None  # arrivals per second; None: the next one starts when one ends
    concurrency: int | None  # most requests at once
    num_requests: int
    num_failed: int
    failures: dict[str, int]  # what went wrong -> how often
    duration_s: float
    requests_per_s: float
    num_cached_tokens: int  # prompt tokens found in the prefix cache
    ttft_s_summary: Summary | None
    tpot_ms_summary: Summary | None
    e2e_s_summary: Summary | None


@dataclass(frozen=True, kw_only=True)
class SpeculativeRow(Row):
    """One workload on a server with drafts, beside the same requests on one without, in turns.

    ttft_s and tpot_ms are means over the requests that succeeded; decode_tok_s is the throughput over all turns.
    """

    workload: str
    num_steps: int  # K, the longest path of drafts in one step
    topk: int  # branches below each draft
    adaptive: bool  # K follows load and acceptance, from num_steps down to 0
    dtype: str
    num_requests: int
    num_failed: int
    failures: dict[str, int]  # what went wrong -> how often
    accepted: list[int]  # entry i: verify steps of which i drafts were accepted
    position_rates: list[float]  # entry i: share of the verify steps of which more than i drafts were accepted
    plain_failures: dict[str, int]
    plain_ttft_s: float | None  # plain_...: without drafts
    plain_tpot_ms: float | None
    plain_tok_s: float | None
    ratio: float | None  # decode_tok_s / plain_tok_s
    turn_ratios: list[float]  # the same for each turn


def append_row(path: str, row: Row) -> None:
    """Add a row to a file, as one line of JSON."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(row)) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of such a file, as plain data. Raises ConfigError naming the line that is wrong."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ConfigError(f"{path.name}, line {number}: {error}") from None
    return rows
