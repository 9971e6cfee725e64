"""Collects one Plan, and remembers which sequence each slot meant: slots are reused, steps return later."""

from dataclasses import dataclass, field

import msgspec

from slipstream.messages.to_worker import NewRequest, Plan, PrefillChunk
from slipstream.scheduler.sequence import Sequence


class Row(msgspec.Struct, frozen=True):
    """What one plan asked of one sequence: a chunk of its prompt, or its bonus token with drafts after it."""

    sequence: Sequence
    chunk_length: int = 0  # tokens; 0: a decode step
    depth: int = 0  # longest path of drafts
    samples: bool = True  # it brings a token

    @property
    def is_decode(self) -> bool:
        return self.chunk_length == 0


@dataclass(frozen=True)
class StepInFlight:
    """A plan that was sent and has not returned. `sent_at` is the sender's monotonic clock, seconds."""

    step: int
    sent_at: float
    rows: dict[int, Row]  # by slot
    depth: int  # longest path of drafts that was allowed
    num_decode: int
    num_warm: int  # of these, how many might have drafts

    @property
    def num_prompt_tokens(self) -> int:
        return sum(row.chunk_length for row in self.rows.values())


@dataclass
class PlanBuilder:
    """A Plan under construction. `release` and `cold` are the scheduler's own lists: they grow as it plans."""

    step: int
    release: list[int]
    cold: list[int]
    depth: int = 0
    num_decode: int = 0
    num_warm: int = 0
    new: list[NewRequest] = field(default_factory=list)
    pages: list[tuple[int, list[int]]] = field(default_factory=list)
    chunks: list[PrefillChunk] = field(default_factory=list)
    decode: list[int] = field(default_factory=list)
    draft_depths: dict[int, int] = field(default_factory=dict)
    rows: dict[int, Row] = field(default_factory=dict)

    def admit(self, sequence: Sequence) -> None:
        """The sequence enters its slot with the pages it has now."""
        assert sequence.slot is not None
        self.new.append(
            NewRequest(
                slot=sequence.slot,
                token_ids=list(sequence.token_ids),
                prompt_len=sequence.prompt_len,
                sampling=sequence.sampling,
                pages=list(sequence.lease.pages),
                num_cached=sequence.num_planned,
                images=[image for image in sequence.images if image.offset + image.length > sequence.num_planned],
                warm=sequence.warm,
            )
        )

    @property
    def num_pixel_bytes(self) -> int:
        """Of the images that travel with this plan."""
        return sum(len(image.pixels) for new in self.new for image in new.images)

    def append_pages(self, sequence: Sequence, pages: list[int]) -> None:
        assert sequence.slot is not None
        self.pages.append((sequence.slot, pages))

    def add_chunk(self, sequence: Sequence, length: int) -> None:
        """Plan the next `length` tokens of the sequence's prefill."""
        assert sequence.slot is not None
        start = sequence.num_planned
        last = start + length == sequence.prefill_end
        self.chunks.append(PrefillChunk(slot=sequence.slot, start=start, length=length, last=last))
        sequence.num_planned += length
        self._take(sequence, Row(sequence, chunk_length=length, samples=last))

    def add_decode(self, sequence: Sequence, depth: int) -> None:
        """Plan the token sampled last, and up to `depth` drafts on a path after it."""
        assert sequence.slot is not None
        self.decode.append(sequence.slot)
        if depth:
            self.draft_depths[sequence.slot] = depth
        self._take(sequence, Row(sequence, depth=depth))

    def build(self) -> Plan:
        return Plan(
            step=self.step,
            release=self.release,
            new=self.new,
            pages=self.pages,
            chunks=self.chunks,
            decode=self.decode,
            draft_depths=self.draft_depths,
            cold=self.cold,
        )

    def in_flight(self, now: float) -> StepInFlight:
        """What to remember of the plan while it is out."""
        return StepInFlight(self.step, now, self.rows, self.depth, self.num_decode, self.num_warm)

    def _take(self, sequence: Sequence, row: Row) -> None:
        assert sequence.slot is not None
        self.rows[sequence.slot] = row
        sequence.put_in_flight(row.samples, row.depth)
