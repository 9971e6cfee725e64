"""Rejection sampling (Leviathan, Kalman and Matias, arXiv 2211.17192, algorithm 1; Chen et al., arXiv 2302.01318).

A draft d that was drawn from q stands with probability min(1, p(d) / q(d)), where p is the target's distribution. The
first that does not is replaced by a draw from norm(max(p - q, 0)); if all stand, one more token is drawn from p. Each
token is then distributed by p, whatever q is.

More drafts stand than by the exact rule if both models are unsure, but which tokens come out depends on the drafts: the
same seed gives other tokens with other drafts, or without any. For chains only.
"""

import torch
from torch import Tensor

from slipstream.sampling.candidates import Candidates
from slipstream.sampling.verify import Way, descend


def reject(candidates: Candidates, target_probs: Tensor, coins: Tensor) -> tuple[Way, Tensor]:
    """The drafts that stand, and what the token after them is to be drawn from: fp32 [B, vocab], of any sum above 0.

    target_probs: fp32 [R, vocab], p of each row. coins: fp32 [B, N], uniform in (0, 1), independent of everything else.
    Drafts without draft_probs were certain: q is 1 at the draft.
    """
    token_ids, q = candidates.token_ids, candidates.draft_probs
    p_drafts = target_probs[candidates.rows[:, :-1], token_ids]
    q_drafts = torch.ones_like(p_drafts) if q is None else q.gather(2, token_ids[:, :, None])[:, :, 0]
    way = descend(candidates, coins * q_drafts < p_drafts)
    p = target_probs[candidates.rows.gather(1, way.length[:, None])[:, 0]]
    if candidates.num_nodes == 1:
        return way, p
    at = way.length.clamp(max=candidates.num_nodes - 2)[:, None]  # the draft that fell; any, where all stand
    if q is None:
        rest = p.scatter(1, token_ids.gather(1, at), 0.0)
    else:
        rest = (p - q.take_along_dim(at[:, :, None], dim=1)[:, 0]).clamp_(min=0.0)
    # Rounding can let a draft fall although p equals q and nothing is left.
    fell = (way.length + 1 < candidates.num_rows_each) & (rest.sum(-1) > 0)
    return way, torch.where(fell[:, None], rest, p)
