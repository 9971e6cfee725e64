"""Speculation measured: the same requests to a server with drafts and to one without, in turns."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from slipstream.bench.request_record import RequestRecord
from slipstream.bench.rows import SpeculativeRow
from slipstream.bench.serving import Case, Send, run_case, to_row
from slipstream.config.algorithms import NO_DRAFTS
from slipstream.config.drafting import DraftShape
from slipstream.config.flags import flag_name
from slipstream.config.options import LaunchOptions
from slipstream.errors import ConfigError
from slipstream.messages.sampling import DraftStats

MAX_TURNS = 10
REQUESTS_PER_TURN = 4  # at least, for each place: a turn ends when its last request does, with places empty before
_OF_SPECULATION = ("speculative_", "simulate_")
_SET_BY_CASE = (
    "speculative_num_steps", "speculative_eagle_topk", "speculative_num_draft_tokens", "speculative_adaptive",
)  # fmt: skip


@dataclass(frozen=True)
class DraftCase:
    """How one server drafts: always K and topk as given here, or, with None, as a server does by default."""

    num_steps: int | None = None
    topk: int | None = None

    def options(self, base: LaunchOptions) -> LaunchOptions:
        """The options of the server."""
        if self.num_steps is None or self.topk is None:
            return base
        return dataclasses.replace(
            base, speculative_num_steps=self.num_steps, speculative_eagle_topk=self.topk, speculative_adaptive="off"
        )


@dataclass(frozen=True)
class ResolvedCase:
    """What a case comes to, with no value left open."""

    shape: DraftShape
    adaptive: bool
    dtype: str


@dataclass
class Side:
    """One of the two servers: its requests, and what became of them."""

    sends: Sequence[Send]
    records: list[RequestRecord] = field(default_factory=list)
    turns_s: list[float] = field(default_factory=list)
    turn_tokens: list[int] = field(default_factory=list)

    async def run_turn(self, case: Case, turn: slice, on_end: Callable[[], None]) -> None:
        """Send the requests of one turn and wait for all of them."""
        records, duration_s = await run_case(case, self.sends[turn], None, on_end)
        self.records += records
        self.turns_s.append(duration_s)
        self.turn_tokens.append(sum(record.num_tokens for record in records if record.ok))

    @property
    def tok_s(self) -> float | None:
        """Generated tokens per second over all turns; None when nothing was generated."""
        return sum(self.turn_tokens) / sum(self.turns_s) if any(self.turn_tokens) else None


def check_options(options: LaunchOptions) -> None:
    """Raise ConfigError for options that the cases set themselves."""
    for field_ in dataclasses.fields(options):
        if field_.name in _SET_BY_CASE and getattr(options, field_.name) != field_.default:
            raise ConfigError(
                f"{flag_name(field_.name)} is set for each server of the benchmark; give --num-steps and --topk"
            )
    if options.speculative_algorithm == NO_DRAFTS:
        raise ConfigError("--speculative-algorithm none leaves nothing to compare; a server without drafts runs anyway")


def plain_options(options: LaunchOptions) -> LaunchOptions:
    """The same server without drafts: none is loaded."""
    defaults: dict[str, Any] = {
        field_.name: field_.default for field_ in dataclasses.fields(options) if field_.name.startswith(_OF_SPECULATION)
    }
    return dataclasses.replace(options, **(defaults | {"speculative_algorithm": NO_DRAFTS}))


def split_turns(num_requests: int, concurrency: int) -> list[slice]:
    """Requests in up to MAX_TURNS turns of nearly equal length.

    >>> split_turns(9, 1), split_turns(100, 16)
    ([slice(0, 4, None), slice(4, 9, None)], [slice(0, 100, None)])
    """
    num_turns = max(1, min(MAX_TURNS, num_requests // (REQUESTS_PER_TURN * concurrency)))
    bounds = [turn * num_requests // num_turns for turn in range(num_turns + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


async def run_in_turns(case: Case, drafting: Side, plain: Side, on_end: Callable[[], None]) -> None:
    """Every turn of requests goes to both servers, first to one and then to the other, and each is first in half of
    the turns: whatever else the machine does hits both alike.
    """
    assert case.concurrency is not None
    for index, turn in enumerate(split_turns(len(drafting.sends), case.concurrency)):
        for side in (drafting, plain) if index % 2 else (plain, drafting):
            await side.run_turn(case, turn, on_end)


def to_speculative_row(
    case: Case, workload: str, how: ResolvedCase, drafting: Side, plain: Side, *, engine: str, model: str
) -> SpeculativeRow:
    """The figures of one case. Acceptance is counted over the verify steps of all requests together."""
    row, plain_row = (
        to_row(case, side.records, sum(side.turns_s), engine=engine, model=model, input_len=None, output_len=None)
        for side in (drafting, plain)
    )
    stats = DraftStats.total(record.drafts for record in drafting.records if record.drafts is not None)
    ratios = [
        (tokens / seconds) / (plain_tokens / plain_seconds)
        for tokens, seconds, plain_tokens, plain_seconds in zip(
            drafting.turn_tokens, drafting.turns_s, plain.turn_tokens, plain.turns_s, strict=True
        )
        if plain_tokens
    ]
    return SpeculativeRow(
        engine=engine, model=model, batch_size=case.concurrency, input_len=row.input_len, output_len=row.output_len,
        ttft_s=row.ttft_s, tpot_ms=row.tpot_ms, decode_tok_s=drafting.tok_s, speculative=True,
        acceptance_length=stats.acceptance_length, workload=workload, num_steps=how.shape.depth,
        topk=how.shape.topk, adaptive=how.adaptive, dtype=how.dtype, num_requests=row.num_requests,
        num_failed=row.num_failed, failures=row.failures, accepted=list(stats.accepted),
        position_rates=stats.position_rates, plain_failures=plain_row.failures, plain_ttft_s=plain_row.ttft_s,
        plain_tpot_ms=plain_row.tpot_ms, plain_tok_s=plain.tok_s,
        ratio=drafting.tok_s / plain.tok_s if drafting.tok_s and plain.tok_s else None, turn_ratios=ratios,
    )  # fmt: skip


def cases(num_steps: Sequence[int], topk: Sequence[int]) -> list[DraftCase]:
    """Every pair, and last what a server does by default."""
    return [*(DraftCase(steps, branches) for branches in topk for steps in num_steps), DraftCase()]
