"""A step that the device may still be working on."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.messages.to_worker import Plan, PrefillChunk


class Moment:
    """A point in the stream of the device's work."""

    def __init__(self, device: torch.device) -> None:
        """Now: after all that has been launched."""
        self._event: torch.cuda.Event | None = None
        self._time_s = 0.0
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self._time_s = time.perf_counter()

    @property
    def is_past(self) -> bool:
        """Whether the device has come so far."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()

    def seconds_since(self, earlier: "Moment") -> float:
        """Of two moments that are past."""
        if self._event is None or earlier._event is None:
            return self._time_s - earlier._time_s
        return float(earlier._event.elapsed_time(self._event)) / 1000


@dataclass(frozen=True)
class PendingStep:
    """What is needed to make a StepResult of it, once it is done. The device fills the results, which are on the host.

    `generations` are those of its slots: a slot may have been given to another request since.
    """

    plan: Plan
    begun: Moment
    ended: Moment
    generations: dict[int, int]
    decode: list[int]
    num_drafts: list[int]  # of each of `decode`
    decode_results: Tensor | None  # see DecodeProgram.results
    chunks: list[PrefillChunk]
    chunk_results: Tensor | None  # see PrefillProgram.results

    @property
    def description(self) -> str:
        return description(self.chunks, self.decode)


def description(chunks: Sequence[PrefillChunk], decode: Sequence[int]) -> str:
    """What a step computes, in words.

    >>> description([PrefillChunk(0, 0, 20, True)], [1, 2])
    '20 tokens of 1 prompts and 2 decoding requests'
    """
    parts = []
    if chunks:
        parts.append(f"{sum(chunk.length for chunk in chunks)} tokens of {len(chunks)} prompts")
    if decode:
        parts.append(f"{len(decode)} decoding requests")
    return " and ".join(parts) or "no rows"


def to_host(results: Tensor) -> Tensor:
    """A copy on the host that is filled in the order of the device's work, not before."""
    if not results.is_cuda:
        return results.clone()
    host = torch.empty(results.shape, dtype=results.dtype, pin_memory=True)
    return host.copy_(results, non_blocking=True)


def drawn_tokens(results: Tensor) -> list[tuple[list[int], bool]]:
    """For each slot or chunk its tokens, and whether all was finite, from a program's results on the host.

    >>> drawn_tokens(torch.tensor([[2, 1, 7, 8, 9], [1, 0, 4, 4, 4]], dtype=torch.int32))
    [([7, 8], True), ([4], False)]
    """
    return [(row[2 : 2 + row[0]], bool(row[1])) for row in results.tolist()]
