"""The exact rule: from the root, go to the child that holds the token drawn at the node, as long as there is one.

The tokens on this way, and the one drawn where it ends, are what decoding one by one would have generated. For the
token drawn at a node is argmax(processed logits + noise): a function of the tokens before it and of noise keyed by
(seed, choice, position), not of the drafts, and a draw from the target's distribution (Gumbel-max: Maddison, Tarlow and
Minka, arXiv 1411.0030, section 2). Drafts only decide which of these draws are known after one forward pass. So a
request gets the same tokens, not just the same distribution, whatever was drafted. Without noise this is greedy
verification.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.sampling.candidates import Candidates


@dataclass(frozen=True)
class Accepted:
    """What B slots commit, of each level of their trees from the root on; L levels, padded.

    Slot b commits the nodes nodes[b, :num_tokens[b]]. token_ids[b, l] is the token after nodes[b, l]: that of the next
    node, and at the last level the new bonus token. Padding repeats the last level.
    """

    nodes: Tensor  # int64 [B, L]
    token_ids: Tensor  # int64 [B, L]
    num_tokens: Tensor  # int64 [B], 1 or more: accepted drafts and the bonus token
    is_finite: Tensor  # bool [B]: whether the logits of all these nodes were finite

    @property
    def bonus(self) -> Tensor:
        """int64 [B]: the new bonus tokens."""
        return self.token_ids[:, -1]

    @staticmethod
    def cut(nodes: Tensor, token_ids: Tensor, num_tokens: Tensor, is_finite: Tensor, caps: Tensor | None) -> "Accepted":
        """Commit num_tokens [B] levels of nodes and token_ids [B, L], but no more than caps [B] drafts of each slot.

        is_finite: bool [B, N + 1], of each node's logits. Where a run is cut, its last token was drawn from the target
        like all others, so that it can be the bonus token.
        """
        if caps is not None:
            num_tokens = num_tokens.minimum(caps + 1)
        levels = torch.arange(nodes.shape[1], device=nodes.device).minimum(num_tokens[:, None] - 1)
        nodes = nodes.gather(1, levels)
        return Accepted(nodes, token_ids.gather(1, levels), num_tokens, is_finite.gather(1, nodes).all(1))


@dataclass(frozen=True)
class Way:
    """A way down each of B trees: nodes[b, 0] is the root, nodes[b, length[b]] its last node; any nodes follow."""

    nodes: Tensor  # int64 [B, N + 1]
    length: Tensor  # int64 [B]: drafts on it

    def token_ids(self, candidates: Candidates, last: Tensor) -> Tensor:
        """int64 [B, N + 1]: the token after each node of the way: the next node's, after the last node last[b]."""
        drafts = candidates.token_ids.gather(1, self.nodes[:, 1:] - 1)
        return torch.cat((drafts, last[:, None]), dim=1).scatter_(1, self.length[:, None], last[:, None])


def verify(candidates: Candidates, drawn: Tensor, is_finite: Tensor, caps: Tensor | None = None) -> Accepted:
    """Accept drafts by the exact rule.

    drawn: int64 [B, N + 1], the token drawn at each node; is_finite: bool [B, N + 1], of the node's logits. caps: int64
    [B], how many drafts may be accepted at most.
    """
    if candidates.num_nodes == 1:
        root = torch.zeros_like(drawn)
        return Accepted(root, drawn, root[:, 0] + 1, is_finite[:, 0])
    if candidates.is_chain:
        way = descend(candidates, drawn[:, :-1] == candidates.token_ids)
        along = drawn
    else:
        way = descend(candidates, drawn.gather(1, candidates.parents) == candidates.token_ids)
        along = drawn.gather(1, way.nodes)
    return Accepted.cut(way.nodes, along, way.length + 1, is_finite, caps)


def descend(candidates: Candidates, enters: Tensor) -> Way:
    """The longest way. enters: bool [B, N], for each draft: may one come to it from its parent?

    Of the children of one node at most one may be entered.
    """
    width = candidates.num_nodes
    numbers = torch.arange(width, device=enters.device).expand(len(enters), -1)
    if not candidates.is_full:
        enters = enters & candidates.is_node[:, 1:]
    if candidates.is_chain:
        return Way(numbers, enters.cumprod(1).sum(1))
    # A node is reached unless it or an ancestor of it is barred. Parents have lower numbers than their children, so the
    # reached nodes in the order of their numbers are the way.
    is_barred = torch.cat((enters.new_zeros(len(enters), 1), ~enters), dim=1)
    is_reached = ~(candidates.ancestors & is_barred[:, None]).any(-1) & candidates.is_node
    return Way(torch.where(is_reached, numbers, numbers + width).argsort(1), is_reached.sum(1) - 1)
