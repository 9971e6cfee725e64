"""What the device knows of each running request, by slot."""

from collections.abc import Sequence

import torch
from torch import Tensor

from slipstream.config.processes import WorkerDrafts
from slipstream.layers.upload import to_device, upload, upload_into

# A plan already in flight may decode a request past its limit before the scheduler hears of its end. Those rows go to
# the sink page, so the tables are a little wider than the context. Without drafts this is enough for 8 steps in flight.
ROWS_PAST_LIMIT = 8


def rows_past_limit(drafts: WorkerDrafts | None) -> int:
    """How many rows beyond the context a slot's page table must lead to: every step in flight may commit a whole path
    of drafts and its bonus token, and the last one touches its rows beyond that.
    """
    if drafts is None:
        return ROWS_PAST_LIMIT
    shape = drafts.shape
    return drafts.max_steps_in_flight * (shape.depth + 1) + shape.rows(shape.depth)


class DeviceState:
    """Per slot: committed length, last sampled token, page table and prompt.

    Lengths are kept twice: on the device, where the rows read them, and on the host (`_cpu`), where sizes are decided;
    there they are behind by the steps whose results have not been taken.
    Of a slot in use, the page table's unused entries are 0, the sink. One slot more than requests can have is always
    empty: `dummy_slot` fills up batches.
    """

    def __init__(
        self,
        num_slots: int,
        page_size: int,
        context_length: int,
        device: torch.device,
        rows_past_limit: int = ROWS_PAST_LIMIT,
    ) -> None:
        self.page_size = page_size
        self.max_pages = -(-(context_length + rows_past_limit) // page_size)
        self.dummy_slot = num_slots
        num_slots += 1
        self.committed_len = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.committed_len_cpu = [0] * num_slots
        self.bonus = torch.zeros(num_slots, dtype=torch.int64, device=device)  # sampled, not yet in KV
        self.page_tables = torch.zeros(num_slots, self.max_pages, dtype=torch.int32, device=device)
        self.prompts_cpu: dict[int, Tensor] = {}  # slot -> int64 [tokens of NewRequest.token_ids]
        self._prompts: dict[int, Tensor] = {}  # the same on the device, of slots that somebody has asked for
        self._num_pages = [0] * num_slots

    def add(self, slot: int, token_ids: Tensor, pages: Sequence[int], num_cached: int) -> None:
        """A request with `token_ids`, int64 on the host, enters an empty slot; KV of its first `num_cached` tokens lies
        in `pages`.
        """
        assert slot not in self.prompts_cpu, f"slot {slot} is taken"
        self.prompts_cpu[slot] = token_ids
        self._count_pages(slot, len(pages))
        table = torch.zeros(self.max_pages, dtype=torch.int32)
        table[: len(pages)] = torch.tensor(pages, dtype=torch.int32)
        upload_into(self.page_tables[slot], table)
        self.set_committed_len(slot, num_cached)

    def prompt(self, slot: int) -> Tensor:
        """int64 [tokens of NewRequest.token_ids], on the device."""
        if slot not in self._prompts:
            self._prompts[slot] = to_device(self.prompts_cpu[slot], self.bonus.device)
        return self._prompts[slot]

    def append_pages(self, slot: int, pages: Sequence[int]) -> None:
        """Lengthen a slot's page table."""
        begin, end = self._num_pages[slot], self._count_pages(slot, len(pages))
        if pages:
            self.page_tables[slot, begin:end] = upload(pages, torch.int32, self.bonus.device)

    def set_committed_len(self, slot: int, length: int) -> None:
        """So many tokens of the slot are in KV and final."""
        self.committed_len_cpu[slot] = length
        self.committed_len[slot].fill_(length)

    def commit(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        """Each of `slots` has so many more tokens in KV."""
        for slot, count in zip(slots, counts, strict=True):
            self.committed_len_cpu[slot] += count
        of_slots, added = upload((slots, counts), torch.int64, self.committed_len.device).unbind(0)
        self.committed_len.index_add_(0, of_slots, added)

    def release(self, slot: int) -> None:
        """Empty a slot. Its pages are the scheduler's to give out again; on the device they stay written until the next
        request enters.
        """
        self.prompts_cpu.pop(slot, None)
        self._prompts.pop(slot, None)
        self.committed_len_cpu[slot] = 0
        self._num_pages[slot] = 0

    def _count_pages(self, slot: int, count: int) -> int:
        """The slot's number of pages with `count` more."""
        end = self._num_pages[slot] + count
        assert end <= self.max_pages, f"slot {slot} has {end} pages, more than a context of {self.max_pages} can fill"
        self._num_pages[slot] = end
        return end
