"""A draft model that follows the target: it reads the target's hidden states and keeps KV of its own."""

from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from slipstream.attention.base import Layout
from slipstream.attention.paging import make_layout
from slipstream.errors import ConfigError
from slipstream.hf_transformers.spec import DrafterSpec
from slipstream.layers.upload import upload
from slipstream.models.drafts.base import DraftModel, DraftOutput
from slipstream.models.drafts.registry import DRAFT_MODELS
from slipstream.speculative.base import BaseSpeculator, Committed
from slipstream.speculative.parts import LoadedDraft, SpeculatorParts


class DraftModelSpeculator(BaseSpeculator):
    """Owns the draft, its attention and its KV, which lies in pages with the target's ids; embedding and head are the
    target's.

    Row k of the draft joins the embedding of token k + 1 and the target's hidden state of token k, at position k and in
    cache row k. Of each slot's last row the outputs are kept: drafting starts from them.
    """

    needs_hidden = True

    def __init__(self, parts: SpeculatorParts) -> None:
        draft = parts.draft
        assert draft is not None, f"{parts.drafts.algorithm} needs a draft model, and the worker has loaded none"
        self.check(draft.spec)
        self.state, self.target, self.device = parts.state, parts.target, parts.device
        self.model = self.load_draft_model(draft, parts.device)
        self.attention = draft.backend(draft.layers, draft.caches)
        kept = (parts.num_slots, int(draft.spec.text_config["hidden_size"]))
        self.kept = DraftOutput(
            torch.zeros(kept, dtype=parts.dtype, device=parts.device),
            torch.zeros(kept, dtype=parts.dtype, device=parts.device),
        )
        self._num_rows: dict[int, int] = {}  # slot -> draft rows that are true; absent: nothing is kept

    def check(self, spec: DrafterSpec) -> None:
        """Raise ConfigError where the draft is not of the kind that this class can run."""
        require(spec, embed="target", head="target", kv_role="own")

    def load_draft_model(self, draft: LoadedDraft, device: torch.device) -> DraftModel:
        """Build the model from its filled parameters."""
        model = DRAFT_MODELS.get(draft.spec.architecture)(draft.spec.config, draft.parameters, device)
        require(draft.spec, norms=dict(model.norms))
        remaining = draft.parameters.remaining()
        assert not remaining, f"{draft.spec.architecture} left parameters unused: {remaining}"
        return model

    def add(self, slot: int, token_ids: Sequence[int]) -> None:
        """Nothing is known of the slot until extend()."""
        assert slot not in self._num_rows, f"slot {slot} is followed already"

    def release(self, slot: int) -> None:
        self._num_rows.pop(slot, None)

    def extend(self, committed: Committed) -> None:
        """Run the draft over final rows with the target's hidden states. What drafting left in their place goes."""
        layout, positions = make_layout(
            self.state.page_tables,
            self.state.page_size,
            committed.slots,
            committed.starts,
            committed.num_rows,
            committed.num_decode,
        )
        x = self.target.embed(committed.successors, committed.images)
        self._keep(committed, self.run_draft(x, committed.hidden, positions, layout))

    def run_draft(self, x: Tensor, hidden: Tensor, positions: Tensor, layout: Layout) -> DraftOutput:
        """One forward pass: embedded rows [T, D] and the hidden states [T, D] beside them, at `positions` [T]."""
        self.attention.plan(layout)
        return self.model.forward(x, hidden, positions, self.attention)

    def assume_complete(self, slots: Iterable[int]) -> None:
        """Somebody else has run the draft over all committed rows of these slots and kept its outputs: see
        device_chain.py.
        """
        for slot in slots:
            self._num_rows[slot] = self.state.committed_len_cpu[slot]

    def kept_of(self, slots: Sequence[int]) -> DraftOutput:
        """[B, D]: the draft's outputs of the row before each slot's bonus token, which predict the first draft."""
        for slot in slots:
            found, wanted = self._num_rows.get(slot), self.state.committed_len_cpu[slot]
            assert found == wanted, f"slot {slot} has {wanted} committed tokens, but the draft has seen {found}"
        return self.kept.rows(upload(slots, torch.int64, self.device))

    def _keep(self, committed: Committed, out: DraftOutput) -> None:
        if len(out.logits_hidden) > len(committed.slots):
            out = out.rows(upload([end - 1 for end in accumulate(committed.num_rows)], torch.int64, self.device))
        self.kept.put(upload(committed.slots, torch.int64, self.device), out)
        for slot, start, num_rows in zip(committed.slots, committed.starts, committed.num_rows, strict=True):
            seen = self._num_rows.get(slot, start)
            assert seen == start, f"the draft has {seen} rows of slot {slot}, but goes on at {start}"
            self._num_rows[slot] = start + num_rows


def require(spec: DrafterSpec, **wanted: object) -> None:
    """Raise ConfigError unless the fields of `spec` have these values."""
    for field, value in wanted.items():
        found = getattr(spec, field)
        if found != value:
            raise ConfigError(
                f"the draft {spec.path} has {field} {found!r}, but this way of drafting takes {value!r} only; "
                "choose another --speculative-algorithm or another draft"
            )
