"""Counting what became of drafts, for the whole process and for each choice.

A verify step is a decode step of one choice with at least one draft.
"""

import msgspec

from slipstream.messages.to_tokenizer import Counters
from slipstream.scheduler.sequence import Sequence


def zero_counters(depth: int) -> Counters:
    """Nothing counted yet, with a place for each position of a path of `depth` drafts."""
    return Counters(num_accepted_per_position=[0] * depth)


def copy_counters(counters: Counters) -> Counters:
    """A copy that does not change any more."""
    return msgspec.structs.replace(counters, num_accepted_per_position=list(counters.num_accepted_per_position))


def count_verify(counters: Counters, sequence: Sequence, num_drafts: int, num_accepted: int) -> None:
    """One verify step of `sequence`; `num_accepted` leaves out what came after its end.

    Three steps with three drafts each, of which 3, 1 and 0 were accepted: counters.num_accepted_per_position is
    [2, 1, 1] and sequence.accepted [1, 1, 0, 1].
    """
    counters.num_drafts += 1
    counters.num_draft_tokens += num_drafts
    counters.num_accepted_tokens += num_accepted
    for position in range(num_accepted):
        counters.num_accepted_per_position[position] += 1
    sequence.num_draft_tokens += num_drafts
    if not sequence.accepted:
        sequence.accepted = [0] * (len(counters.num_accepted_per_position) + 1)
    sequence.accepted[num_accepted] += 1
