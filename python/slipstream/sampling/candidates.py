"""Drafts to be verified: one tree of tokens for each slot."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from slipstream.sampling.paths import Paths


@dataclass(frozen=True)
class Candidates:
    """Drafts of B slots. Node 0 of a slot's tree is its bonus token; node i >= 1 is draft token_ids[:, i - 1].

    A chain is the tree in which every node's parent is the node before it. "No draft" is a count of 0. Children of one
    node hold different tokens. Padding holds valid token ids and parents too (0 will do); nobody looks at their values.

    In the target's forward slot b takes 1 + num_drafts[b] consecutive rows, its nodes in their order: R rows in all.
    """

    num_drafts: tuple[int, ...]  # B: each slot's drafts; what lies beyond them is padding
    token_ids: Tensor  # int64 [B, N], N = max(num_drafts), possibly 0
    parents: Tensor  # int64 [B, N]: number of the parent node of node i + 1, always below i + 1
    is_chain: bool
    draft_probs: Tensor | None = None  # fp32 [B, N, vocab]: what each draft was drawn from; for rejection sampling

    @staticmethod
    def none(num_slots: int, device: torch.device) -> "Candidates":
        """Slots without drafts."""
        empty = torch.zeros(num_slots, 0, dtype=torch.int64, device=device)
        return Candidates((0,) * num_slots, empty, empty, is_chain=True)

    @staticmethod
    def chain(num_drafts: Sequence[int], token_ids: Tensor, draft_probs: Tensor | None = None) -> "Candidates":
        """Chains: every draft's parent is the node before it. Arguments as the fields of the same names."""
        parents = torch.arange(token_ids.shape[1], device=token_ids.device).expand(len(token_ids), -1)
        return Candidates(tuple(num_drafts), token_ids, parents, is_chain=True, draft_probs=draft_probs)

    @property
    def num_nodes(self) -> int:
        """Nodes of the largest tree with its root, N + 1: the width of everything that is given for each node."""
        return self.token_ids.shape[1] + 1

    @property
    def num_rows(self) -> int:
        """R.

        >>> Candidates.none(3, torch.device("cpu")).num_rows
        3
        """
        return len(self.num_drafts) + sum(self.num_drafts)

    @property
    def is_full(self) -> bool:
        """Whether there is no padding: rows are then nodes, slot after slot."""
        return self.num_rows == len(self.num_drafts) * self.num_nodes

    @cached_property
    def num_rows_each(self) -> Tensor:
        """int64 [B]: rows of each slot."""
        return torch.tensor(self.num_drafts, dtype=torch.int64, device=self.token_ids.device) + 1

    @cached_property
    def is_node(self) -> Tensor:
        """bool [B, N + 1]: False where there is padding."""
        return torch.arange(self.num_nodes, device=self.token_ids.device) < self.num_rows_each[:, None]

    @cached_property
    def rows(self) -> Tensor:
        """int64 [B, N + 1]: the row of each node; padding points at its slot's root.

        num_drafts (1, 2) gives [[0, 1, 0], [2, 3, 4]].
        """
        nodes = torch.arange(self.num_nodes, device=self.token_ids.device)
        starts = self.num_rows_each.cumsum(0) - self.num_rows_each
        return starts[:, None] + nodes * self.is_node

    @cached_property
    def ancestors(self) -> Tensor:
        """bool [B, N + 1, N + 1]: does node [b, i] descend from node [b, t], or is it that node?

        False everywhere in rows and columns of padding.
        """
        width, device = self.num_nodes, self.token_ids.device
        if self.is_chain:
            chain = torch.ones(width, width, dtype=torch.bool, device=device).tril()
            return chain.expand(len(self.num_drafts), -1, -1) if self.is_full else chain & self.is_node[:, :, None]
        # Steps from a node to itself or its parent; squared, these are walks of twice the length.
        walks = torch.eye(width, device=device).repeat(len(self.num_drafts), 1, 1)
        walks[:, 1:].scatter_(2, self.parents[:, :, None], 1.0)
        longest = 1
        while longest < width - 1:
            walks = (walks @ walks).clamp_(max=1.0)
            longest *= 2
        return (walks > 0) if self.is_full else (walks > 0) & self.is_node[:, :, None]

    @cached_property
    def depths(self) -> Tensor:
        """int64 [B, N + 1]: steps from the root to each node; 0 for padding."""
        if self.is_chain:
            nodes = torch.arange(self.num_nodes, device=self.token_ids.device)
            return nodes.expand(len(self.num_drafts), -1) if self.is_full else nodes * self.is_node
        return (self.ancestors.sum(-1) - 1).clamp_(min=0)

    def with_roots(self, count: int) -> "Candidates":
        """`count` slots without drafts appended."""
        if not count:
            return self
        more = self.token_ids.new_zeros(count, self.token_ids.shape[1])
        probs = self.draft_probs
        return Candidates(
            self.num_drafts + (0,) * count,
            torch.cat((self.token_ids, more)),
            torch.cat((self.parents, more)),
            self.is_chain,
            None if probs is None else torch.cat((probs, probs.new_zeros(count, *probs.shape[1:]))),
        )

    def flat_token_ids(self, bonus: Tensor) -> Tensor:
        """int64 [R]: for each slot its bonus token and its drafts. bonus: int64 [B]."""
        return self.per_row(torch.cat((bonus[:, None], self.token_ids), dim=1))

    def per_row(self, values: Tensor) -> Tensor:
        """[R, *] from [B, N + 1, *]: the values of padding left out."""
        flat = values.flatten(0, 1)
        return flat if self.is_full else flat.index_select(0, self._nodes_of_rows)

    def per_node(self, values: Tensor) -> Tensor:
        """[B, N + 1] from [R]: padding repeats the root's value."""
        return values.view(-1, self.num_nodes) if self.is_full else values[self.rows]

    def paths(self) -> Paths:
        """The paths of all R rows: a row's drafts are those from below the root down to its own node."""
        token_ids = self.token_ids[:, None].expand(-1, self.num_nodes, -1)
        return Paths(self.per_row(token_ids), self.per_row(self.ancestors[:, :, 1:]))

    @cached_property
    def _nodes_of_rows(self) -> Tensor:
        """int64 [R]: where each row stands in the flattened [B, N + 1]. Made without a look at the device."""
        device, slots = self.token_ids.device, len(self.num_drafts)
        shift = torch.arange(slots, device=device) * self.num_nodes - (
            self.num_rows_each.cumsum(0) - self.num_rows_each
        )
        num_rows = self.num_rows
        return torch.arange(num_rows, device=device) + shift.repeat_interleave(self.num_rows_each, output_size=num_rows)
