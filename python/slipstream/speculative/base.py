"""What the worker asks of whoever drafts."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from slipstream.models.base import ImageRows
from slipstream.sampling.candidates import Candidates


class SlotState(Protocol):
    """What a speculator reads of the worker's state of all slots."""

    @property
    def page_size(self) -> int: ...
    @property
    def page_tables(self) -> Tensor: ...  # int32 [slots, pages]; of slots in use, unused ones are 0, the sink
    @property
    def committed_len_cpu(self) -> Sequence[int]: ...  # tokens in KV and final


@dataclass(frozen=True)
class Committed:
    """Rows that one step has made final: T rows of R requests, decode slots first, then chunks of prompts.

    Row j of request r stands at position starts[r] + j.
    """

    slots: tuple[int, ...]  # R
    starts: tuple[int, ...]
    num_rows: tuple[int, ...]
    num_decode: int  # so many of the requests are decode slots
    successors: Tensor  # int64 [T]: the token after each row's own
    images: ImageRows | None  # rows whose successor stands for a part of an image
    hidden: Tensor  # [T, D]: the target's hidden states of the rows, after its final norm


class BaseSpeculator(ABC):
    """Proposes drafts. It hears of every slot that it follows; of a slot it was not told of it knows nothing."""

    needs_hidden = False  # does extend() read hidden states, so that every row of a slot must be there?

    @abstractmethod
    def add(self, slot: int, token_ids: Sequence[int]) -> None:
        """A request enters an empty slot. `token_ids` are those that lie in cached pages, and the one after them: the
        others come as the successors of rows, in extend().
        """

    @abstractmethod
    def release(self, slot: int) -> None:
        """The slot is followed no longer."""

    @abstractmethod
    def extend(self, committed: Committed) -> None:
        """Take in what has become final: the step after it, propose() continues from there."""

    @abstractmethod
    def propose(
        self, slots: Sequence[int], depths: Sequence[int], limits: Sequence[int | None] | None = None
    ) -> Candidates:
        """Drafts for `slots`, which are followed unless their depth is 0; no path is longer than the slot's depth, and
        no tree has more drafts than the slot's limit, which is its depth at least. None: as many as DraftShape allows.
        """
