"""Drafting chains without a look at the device, so that a whole step can be captured in a CUDA graph."""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from slipstream.attention.base import DeviceAttention, DeviceRows
from slipstream.kernels.draw import draw_tokens
from slipstream.kernels.slot_tables import SlotTables
from slipstream.speculative.autoregressive import AutoRegressiveSpeculator


class DeviceChain:
    """What AutoRegressiveSpeculator does for chains, on tensors of fixed sizes: every slot of a batch gets as many
    drafts, and those that are not wanted are not accepted. Its draft, its KV and its kept outputs are the speculator's.

    Drafts are drawn by temperature, filters and noise of the target; penalties, a bias and the like are left out: they
    change which drafts are proposed, never which tokens are right.
    """

    def __init__(self, speculator: AutoRegressiveSpeculator, tables: SlotTables) -> None:
        self._model, self._target = speculator.model, speculator.target
        self.attention = cast(DeviceAttention, speculator.attention)
        self._kept = speculator.kept
        self._tables = tables

    def draft(self, slots: Tensor, levels: DeviceRows, depth: int) -> Tensor:
        """int64 [B, depth]: drafts of `slots`, int64 [B].

        `levels` describes one row of each slot; its positions and kv_rows are [depth, B]: those of the rows from the
        committed length on.
        """
        out = self._kept.rows(slots)
        drafts: list[Tensor] = []
        for level in range(depth):
            if level:
                positions, kv_rows = levels.positions[level - 1], levels.kv_rows[level - 1]
                self.attention.plan_rows(replace(levels, positions=positions, kv_rows=kv_rows))
                x = self._target.embed(drafts[-1])
                out = self._model.forward(x, out.feedback_hidden, positions, self.attention)
            logits = self._target.compute_logits(out.logits_hidden, widen=False)
            # the bonus token stands at positions[0], and the first draft comes after it
            drafts.append(draw_tokens(logits, slots, levels.positions[level] + 1, self._tables)[0])
        return torch.stack(drafts, dim=1)

    def extend(self, positions: Tensor, successors: Tensor, hidden: Tensor, slots: Tensor, last_rows: Tensor) -> None:
        """Run the draft over all rows of a step, for which `attention` is planned, with the token after each, int64
        [T], and the target's hidden states [T, D]. Of each of `slots` the outputs of its row `last_rows`, both int64
        [R], are kept; rows after it are not final, and what they leave in the cache is written again.
        """
        out = self._model.forward(self._target.embed(successors), hidden, positions, self.attention)
        self._kept.put(slots, out.rows(last_rows))
