"""Drafting one level after the other: a chain, or the dynamic tree of EAGLE-2."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.attention.base import Tree
from slipstream.attention.paging import make_layout
from slipstream.hf_transformers.spec import DrafterSpec
from slipstream.models.drafts.base import DraftOutput
from slipstream.sampling.candidates import Candidates
from slipstream.sampling.paths import Paths
from slipstream.speculative.draft_model import DraftModelSpeculator, require
from slipstream.speculative.parts import SpeculatorParts
from slipstream.speculative.tree import TreeBuilder, likeliest


@dataclass(frozen=True)
class _Slots:
    """Slots that are drafted for, deepest first."""

    slots: Sequence[int]
    lens: Sequence[int]  # their committed lengths
    depths: Sequence[int]
    limits: Sequence[int | None]  # of the drafts of each slot

    def deeper(self, depth: int) -> "_Slots":
        """Those that want drafts below this depth: the first ones."""
        count = sum(each > depth for each in self.depths)
        return _Slots(self.slots[:count], self.lens[:count], self.depths[:count], self.limits[:count])

    def shifted(self, distance: int) -> list[int]:
        """The positions so far after the committed tokens."""
        return [length + distance for length in self.lens]


class AutoRegressiveSpeculator(DraftModelSpeculator):
    """With n committed tokens the kept outputs of a slot's last true row, n - 1, give the first level of drafts, for
    position n + 1. Each further level runs the drafts of the one before it through the draft, with its own feedback in
    the place of the target's hidden states. Their rows, from n on, are scratch: the next extend() replaces them.

    Slots whose depth is reached take no part in the levels after it. The last level needs no forward pass.
    """

    def __init__(self, parts: SpeculatorParts) -> None:
        super().__init__(parts)
        self.sampler, self.shape = parts.sampler, parts.drafts.shape
        assert self.shape.topk <= parts.vocab_size, f"topk {self.shape.topk} of {parts.vocab_size} tokens"
        assert self.shape.is_chain or not parts.drafts.rejection_sampling, "rejection sampling is for chains"

    def check(self, spec: DrafterSpec) -> None:
        super().check(spec)
        require(spec, tokens_per_forward=1, position_rule="advance", noncausal_block=False)

    def advance_draft_positions(self, positions: Tensor) -> Tensor:
        """int64 [M]: RoPE positions of the next level's rows, from those of the rows whose outputs they take."""
        return positions + 1

    def sample_draft(
        self, logits_hidden: Tensor, slots: Sequence[int], positions: Sequence[int], paths: Paths | None
    ) -> tuple[Tensor, Tensor | None]:
        """Draw one draft for each row [rows, D], as the target's tokens are drawn at these positions: token ids [rows],
        and with rejection sampling the probabilities [rows, vocab] that they were drawn from.
        """
        return self.sampler.propose(self.target.compute_logits(logits_hidden), slots, positions, paths)

    def rank_drafts(
        self, logits_hidden: Tensor, slots: Sequence[int], positions: Sequence[int], paths: Paths | None
    ) -> tuple[Tensor, Tensor]:
        """The topk likeliest drafts of each row, noise included: log-probabilities and token ids, both [rows, topk]."""
        scores = self.sampler.scores(self.target.compute_logits(logits_hidden), slots, positions, paths)
        return likeliest(scores, self.shape.topk)

    def propose(
        self, slots: Sequence[int], depths: Sequence[int], limits: Sequence[int | None] | None = None
    ) -> Candidates:
        """See BaseSpeculator.propose. `slots` differ from each other; a slot's pages have room for shape.rows(depth)
        rows beyond the committed ones.
        """
        order = [index for index in sorted(range(len(slots)), key=lambda index: -depths[index]) if depths[index]]
        if not order:
            return Candidates.none(len(slots), self.device)
        wanted = _Slots(
            slots=[slots[index] for index in order],
            lens=[self.state.committed_len_cpu[slots[index]] for index in order],
            depths=[depths[index] for index in order],
            limits=[limits[index] if limits is not None else None for index in order],
        )
        assert wanted.depths[0] <= self.shape.depth, f"depths {depths}, but at most {self.shape.depth} are configured"
        drafted = self._draft_chains(wanted) if self.shape.is_chain else self._draft_trees(wanted)
        return _in_order(drafted, order, len(slots))

    def _draft_chains(self, wanted: _Slots) -> Candidates:
        depth = wanted.depths[0]
        token_ids = torch.zeros(len(wanted.slots), depth, dtype=torch.int64, device=self.device)
        probs: Tensor | None = None
        out, positions = self.kept_of(wanted.slots), self._last_positions(wanted)
        for step in range(depth):
            active = wanted.deeper(step)
            size = len(active.slots)
            if step:
                positions = self.advance_draft_positions(positions[:size])
                x, starts = token_ids[:size, step - 1], active.shifted(step - 1)
                out = self._run_level(active, starts, x, out.feedback_hidden[:size], positions, None)
            needs_paths = step > 0 and self.sampler.uses_paths(active.slots)
            paths = Paths.whole(token_ids[:size, :step]) if needs_paths else None
            drawn, drawn_from = self.sample_draft(
                out.logits_hidden[:size], active.slots, active.shifted(step + 1), paths
            )
            token_ids[:size, step] = drawn
            if drawn_from is not None:
                probs = drawn_from.new_zeros(*token_ids.shape, drawn_from.shape[1]) if probs is None else probs
                probs[:size, step] = drawn_from
        return Candidates.chain(wanted.depths, token_ids, probs)

    def _draft_trees(self, wanted: _Slots) -> Candidates:
        """The topk rows of frontier l, from 1 on, lie from cache row n + (l - 1) * topk on."""
        topk = self.shape.topk
        builder = TreeBuilder(len(wanted.slots), topk, wanted.depths[0], self.device)
        out, positions = self.kept_of(wanted.slots), self._last_positions(wanted)
        builder.add(*self.rank_drafts(out.logits_hidden, wanted.slots, wanted.shifted(1), None))
        for level in range(1, wanted.depths[0]):
            active = wanted.deeper(level)
            frontier = builder.next_frontier(len(active.slots))
            positions = self.advance_draft_positions(positions[: len(active.slots)])
            out = self._run_level(
                active,
                active.shifted((level - 1) * topk),
                frontier.token_ids.flatten(),
                out.feedback_hidden.index_select(0, frontier.parent_rows.flatten()),
                positions.repeat_interleave(topk),
                Tree(tuple(active.lens), frontier.visible),
            )
            slots = [slot for slot in active.slots for _ in range(topk)]
            targets = [position for position in active.shifted(level + 1) for _ in range(topk)]
            paths = frontier.paths() if self.sampler.uses_paths(active.slots) else None
            builder.add(*self.rank_drafts(out.logits_hidden, slots, targets, paths))
        counts = tuple(
            self.shape.nodes(depth) if limit is None else min(self.shape.nodes(depth), limit)
            for depth, limit in zip(wanted.depths, wanted.limits, strict=True)
        )
        token_ids, parents = builder.build(counts)
        return Candidates(counts, token_ids, parents, is_chain=False)

    def _last_positions(self, wanted: _Slots) -> Tensor:
        """int64 [B]: where the kept rows stand."""
        return torch.tensor(wanted.shifted(-1), device=self.device)

    def _run_level(
        self,
        active: _Slots,
        starts: Sequence[int],
        token_ids: Tensor,
        feedback: Tensor,
        positions: Tensor,
        tree: Tree | None,
    ) -> DraftOutput:
        """Run the drafts of one level, as many for each slot, from its cache row `starts` on. `token_ids`, `feedback`
        [T, D] and `positions` are those of all T rows.
        """
        state, size = self.state, len(active.slots)
        num_rows = [len(token_ids) // size] * size
        layout, _ = make_layout(state.page_tables, state.page_size, active.slots, starts, num_rows, size, tree)
        return self.run_draft(self.target.embed(token_ids), feedback, positions, layout)


def _in_order(drafted: Candidates, order: Sequence[int], num_slots: int) -> Candidates:
    """`drafted` are the drafts of the slots order[0], order[1], ... of `num_slots`; the others have none."""
    if list(order) == list(range(num_slots)):
        return drafted
    at = torch.tensor(order, device=drafted.token_ids.device)
    counts = dict(zip(order, drafted.num_drafts, strict=True))

    def spread(part: Tensor) -> Tensor:
        return part.new_zeros(num_slots, *part.shape[1:]).index_copy_(0, at, part)

    return Candidates(
        tuple(counts.get(index, 0) for index in range(num_slots)),
        spread(drafted.token_ids),
        spread(drafted.parents),
        drafted.is_chain,
        None if drafted.draft_probs is None else spread(drafted.draft_probs),
    )
