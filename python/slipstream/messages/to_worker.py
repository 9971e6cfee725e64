"""What the worker receives: one Plan for each step, in stream order."""

import msgspec

from slipstream.messages.images import ImageInput
from slipstream.messages.sampling import SamplingParams


class NewRequest(msgspec.Struct, frozen=True, array_like=True):
    """A request enters a slot. `token_ids` are the prompt and, after a preemption, what was generated before.

    KV of the first `num_cached` tokens is already in `pages`.
    """

    slot: int
    token_ids: list[int]
    prompt_len: int
    sampling: SamplingParams
    pages: list[int]
    num_cached: int
    images: list[ImageInput] = []  # those with a token at or after num_cached
    warm: bool = False  # the draft follows this slot: its KV is complete up to num_cached and is to be kept so


class PrefillChunk(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Compute KV of tokens [start, start + length) of a slot; with `last`, also sample the next token."""

    slot: int
    start: int
    length: int
    last: bool


class Plan(msgspec.Struct, frozen=True, tag=True):
    """One step, in the order in which it takes effect: releases, new requests, pages, then the rows.

    No field depends on what the steps in flight will commit: a decode slot continues from the worker's own state.
    """

    step: int
    release: list[int] = []  # slots; their pages may be reused in this very plan
    new: list[NewRequest] = []
    pages: list[tuple[int, list[int]]] = []  # (slot, page ids appended to its table)
    chunks: list[PrefillChunk] = []
    decode: list[int] = []  # slots that compute their last sampled token and the drafts after it
    draft_depths: dict[int, int] = {}  # slot of `decode` -> longest path of drafts to verify; none for the others
    cold: list[int] = []  # slots that the draft follows no longer, from this step on


ToWorker = Plan
