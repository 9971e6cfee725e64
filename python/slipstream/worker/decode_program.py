"""One decode step for a fixed number of slots and drafts: device work only, so that a CUDA graph can hold it."""

from dataclasses import replace

import torch
from torch import Tensor

from slipstream.attention.base import DeviceRows
from slipstream.kernels.draw import draw_tokens
from slipstream.kernels.rows import decode_rows
from slipstream.kernels.verify_chain import verify_chain
from slipstream.layers.upload import upload, upload_into
from slipstream.worker.device_parts import DeviceParts


class DecodeProgram:
    """A step of `batch` slots with `depth` drafts each, so M = depth + 1 rows; `extends`: the draft runs over them.

    load() says which slots; forward() leaves `drafts`, int64 [batch, depth], and `hidden` [batch * M, D]; tail() leaves
    `results`, int32 [batch, M + 2]: for each slot the number of its tokens, whether all is finite, and the tokens.
    Slots that are not given are the dummy.
    """

    drafts: Tensor
    hidden: Tensor

    def __init__(self, parts: DeviceParts, batch: int, depth: int, extends: bool) -> None:
        self.parts, self.batch, self.depth, self.extends = parts, batch, depth, extends
        device, width = parts.device, depth + 1
        self._loaded_slots, self._loaded_most = [parts.state.dummy_slot] * batch, [0] * batch
        self._slots = upload(self._loaded_slots, torch.int64, device)
        self._max_accepted = upload(self._loaded_most, torch.int32, device)
        self.results = torch.zeros(batch, width + 2, dtype=torch.int32, device=device)
        positions, kv_rows = (torch.zeros(batch * width, dtype=torch.int64, device=device) for _ in range(2))
        self.rows = DeviceRows(
            page_tables=parts.state.page_tables,
            positions=positions,
            kv_rows=kv_rows,
            block_slots=self._slots,
            block_starts=torch.arange(0, batch * width, width, dtype=torch.int32, device=device),
            block_sizes=torch.full((batch,), width, dtype=torch.int32, device=device),
            rows_per_block=width,
            max_kv_len=parts.max_kv_len,
        )
        self._level_starts = torch.arange(batch, dtype=torch.int32, device=device)
        self._level_sizes = torch.ones(batch, dtype=torch.int32, device=device)
        self._first_rows = torch.arange(0, batch * width, width, dtype=torch.int64, device=device)

    def load(self, slots: list[int], max_accepted: list[int]) -> None:
        """Up to `batch` slots, and how many drafts of each may be accepted. Copies only what has changed."""
        rest = self.batch - len(slots)
        slots = slots + [self.parts.state.dummy_slot] * rest
        max_accepted = max_accepted + [0] * rest
        if slots != self._loaded_slots:
            upload_into(self._slots, torch.tensor(slots))
            self._loaded_slots = slots
        if max_accepted != self._loaded_most:
            upload_into(self._max_accepted, torch.tensor(max_accepted, dtype=torch.int32))
            self._loaded_most = max_accepted

    def run(self) -> None:
        """The whole step."""
        self.forward()
        self.tail()

    def forward(self) -> None:
        """Draft, and run the target over the bonus tokens and the drafts: `drafts` and `hidden` are there."""
        parts, state, rows = self.parts, self.parts.state, self.rows
        width = self.depth + 1
        decode_rows(
            self._slots, state.committed_len, state.page_tables, width, state.page_size, rows.positions, rows.kv_rows
        )
        bonus = state.bonus.index_select(0, self._slots)
        self.drafts = bonus.new_zeros(self.batch, 0)
        if self.depth:
            assert parts.chain is not None
            self.drafts = parts.chain.draft(self._slots, self._levels(), self.depth)
        token_ids = torch.cat((bonus.unsqueeze(1), self.drafts), 1).view(-1) if self.depth else bonus
        parts.attention.plan_rows(rows)
        self.hidden = parts.model.forward(parts.model.embed(token_ids), rows.positions, parts.attention)

    def tail(self) -> None:
        """Draw, verify, commit, extend the draft: `results` are there."""
        parts, state, rows = self.parts, self.parts.state, self.rows
        width = self.depth + 1
        logits = parts.model.compute_logits(self.hidden, widen=False)
        row_slots = self._slots.unsqueeze(1).expand(-1, width).contiguous().view(-1)
        drawn, is_finite = draw_tokens(logits, row_slots, rows.positions + 1, parts.tables)
        results, successors = verify_chain(
            drawn.view(self.batch, width),
            is_finite.view(self.batch, width),
            self.drafts,
            self._slots,
            self._max_accepted,
            parts.simulated_length if self.depth else None,
            parts.tables.keys,
            state.committed_len,
            state.bonus,
            state.dummy_slot,
        )
        self.results.copy_(results)
        if self.extends:
            assert parts.chain is not None
            last_rows = self._first_rows + (results[:, 0] - 1)
            parts.chain.attention.plan_rows(rows)
            parts.chain.extend(rows.positions, successors.view(-1), self.hidden, self._slots, last_rows)

    def extend(self, successors: list[list[int]]) -> None:
        """In the place of tail(), where the host has drawn `successors` of each slot and committed them: extend the
        draft alone.
        """
        parts, device, width = self.parts, self.parts.device, self.depth + 1
        if not self.extends:
            return
        assert parts.chain is not None
        rest = self.batch - len(successors)
        padded = [[*own, *[0] * (width - len(own))] for own in successors] + [[0] * width] * rest
        lasts = [row * width + max(len(own), 1) - 1 for row, own in enumerate(successors)]
        lasts += range(len(successors) * width, self.batch * width, width)
        last_rows = upload(lasts, torch.int64, device)
        token_ids = upload(padded, torch.int64, device).view(-1)
        parts.chain.attention.plan_rows(self.rows)
        parts.chain.extend(self.rows.positions, token_ids, self.hidden, self._slots, last_rows)

    def _levels(self) -> DeviceRows:
        """The rows of each level of drafts: one for each slot."""
        shape = (self.batch, self.depth + 1)
        positions, kv_rows = (each.view(shape).t().contiguous() for each in (self.rows.positions, self.rows.kv_rows))
        return replace(
            self.rows,
            positions=positions,
            kv_rows=kv_rows,
            block_starts=self._level_starts,
            block_sizes=self._level_sizes,
            rows_per_block=1,
        )
