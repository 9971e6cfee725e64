"""Drafts to be verified: one tree of tokens for each slot."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """Drafts of B slots. Node 0 of a slot's tree is its bonus token; node i >= 1 is draft token_ids[:, i - 1].

    A chain is the tree in which every node's parent is the node before it. "No draft" is a count of 0.
    """

    num_drafts: tuple[int, ...]  # B: each slot's drafts; what lies beyond them is padding
    token_ids: Tensor  # int64 [B, N], N = max(num_drafts), possibly 0
    parents: Tensor  # int64 [B, N]: number of the parent node of node i + 1, always below i + 1
    is_chain: bool
    draft_probs: Tensor | None = None  # fp32 [B, N, vocab]: what each draft was drawn from; for rejection sampling
