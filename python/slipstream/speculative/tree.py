"""The dynamic draft tree of EAGLE-2 (Li et al., arXiv 2406.16858, sections 4.1 and 4.2): arithmetic on candidates only.

Every level's `topk` best nodes, its frontier, are expanded into `topk` children each; a node's score is the sum of the
log-probabilities on its path. Of all candidates the best are drafted. Candidates of one slot are numbered level by
level: topk of the first level, then topk * topk for each further one, children of one node side by side. So a parent's
number is below its children's, and since no child outscores its parent, and of equal scores the lower number wins, the
best candidates always contain their own parents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.sampling.paths import Paths

ROOT = -1  # the parent of the first level


@dataclass(frozen=True)
class Frontier:
    """The nodes of level l, counted from 1, that are expanded: k for each of the first M slots."""

    token_ids: Tensor  # int64 [M, k]
    parent_rows: Tensor  # int64 [M, k]: rows of the parents among all nodes of the frontier before it, slot after slot
    seen_token_ids: Tensor  # int64 [M, l * k]: of all frontiers so far
    visible: Tensor  # bool [M, k, l * k]: which of them are the node's ancestors or itself

    def paths(self) -> Paths:
        """Of all M * k nodes: their ancestors and themselves."""
        topk = self.token_ids.shape[1]
        return Paths(self.seen_token_ids.repeat_interleave(topk, dim=0), self.visible.flatten(0, 1))


def likeliest(scores: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """The topk best of each row, best first: log-probabilities under softmax(scores), never above 0 and never NaN, and
    token ids; both [rows, topk]. scores: [rows, vocab] fp32.
    """
    best = scores.topk(topk, dim=-1)
    log_probs = best.values - scores.logsumexp(dim=-1, keepdim=True)
    return log_probs.nan_to_num_(nan=-torch.inf, posinf=0.0, neginf=-torch.inf).clamp_(max=0.0), best.indices


def best_first(scores: Tensor, count: int) -> Tensor:
    """int64 [B, count]: the columns of `scores` [B, C] in falling order, of equal ones the first column first."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :count]


def visible_nodes(visible: Tensor, parents: Tensor) -> Tensor:
    """What each node of the next frontier sees: what its parent sees, and itself among its own frontier.

    visible: bool [M, F, nodes]. parents: int64 [M, k] below F. Returns bool [M, k, nodes + k].
    """
    size, topk = parents.shape
    inherited = visible.gather(1, parents.unsqueeze(2).expand(-1, -1, visible.shape[2]))
    itself = torch.eye(topk, dtype=torch.bool, device=visible.device).expand(size, -1, -1)
    return torch.cat((inherited, itself), dim=2)


def select(scores: Tensor, parents: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The counts[b] best candidates of each slot as a tree.

    scores: fp32 [B, C]. parents: int64 [B, C], candidate numbers or ROOT. Returns int64 [B, N] both, N the largest
    count: the chosen candidates in rising order, C where there are no more; and as Candidates.parents wants them, the
    nodes' parents, 0 where there are no more.

    Example: with scores (-1, -2, -1.5, -4) and parents (ROOT, ROOT, 0, 1) the best 3 are 0, 1, 2 and their parents
    nodes 0, 0, 1.
    """
    num_candidates, most = scores.shape[1], max(counts)
    chosen = best_first(scores, most)
    if min(counts) < most:
        ranks = torch.arange(most, device=scores.device)
        beyond = ranks >= torch.tensor(counts, device=scores.device).unsqueeze(1)
        chosen = chosen.masked_fill(beyond, num_candidates)
    chosen = chosen.sort(dim=-1).values
    found = parents.gather(1, chosen.clamp(max=num_candidates - 1)).masked_fill_(chosen == num_candidates, ROOT)
    return chosen, torch.where(found == ROOT, 0, torch.searchsorted(chosen, found) + 1)


class TreeBuilder:
    """Candidates of B slots, deepest first: slots whose depth is reached fall away from the end.

    In turn: add() the children of the nodes last expanded (at first of the bonus tokens), then next_frontier(). At last
    build().
    """

    def __init__(self, num_slots: int, topk: int, depth: int, device: torch.device) -> None:
        """`depth` is that of the deepest slot."""
        self._topk = topk
        shape = (num_slots, topk + (depth - 1) * topk**2)
        self._token_ids = torch.zeros(shape, dtype=torch.int64, device=device)
        self._parents = torch.full(shape, ROOT, dtype=torch.int64, device=device)
        self._scores = torch.full(shape, -torch.inf, device=device)
        self._begin = self._end = 0  # candidates [begin, end) are the last level's
        # the nodes last expanded: at first the bonus token
        self._frontier = torch.full((num_slots, 1), ROOT, device=device)
        self._frontier_scores = torch.zeros(num_slots, 1, device=device)
        self._seen_token_ids = torch.zeros(num_slots, 0, dtype=torch.int64, device=device)
        self._visible = torch.zeros(num_slots, 1, 0, dtype=torch.bool, device=device)

    def add(self, log_probs: Tensor, token_ids: Tensor) -> None:
        """The next level: for the first M slots the topk children of each of the F nodes last expanded, [M * F, topk]
        both; see likeliest().
        """
        size, num_expanded = self._frontier.shape
        self._begin, self._end = self._end, self._end + num_expanded * self._topk
        level = (slice(size), slice(self._begin, self._end))
        scores = self._frontier_scores.unsqueeze(2) + log_probs.view(size, num_expanded, self._topk)
        self._scores[level] = scores.flatten(1)
        self._token_ids[level] = token_ids.view(size, -1)
        self._parents[level] = self._frontier.repeat_interleave(self._topk, dim=1)

    def next_frontier(self, size: int) -> Frontier:
        """The best nodes of the level last added, for the first `size` slots: they are to be expanded next."""
        level = (slice(size), slice(self._begin, self._end))
        best = best_first(self._scores[level], self._topk)
        parents = best // self._topk  # among the F nodes of each slot that were expanded last
        first_rows = torch.arange(size, device=best.device).unsqueeze(1) * self._frontier.shape[1]
        token_ids = self._token_ids[level].gather(1, best)
        self._frontier = best + self._begin
        self._frontier_scores = self._scores[level].gather(1, best)
        self._seen_token_ids = torch.cat((self._seen_token_ids[:size], token_ids), dim=1)
        self._visible = visible_nodes(self._visible[:size], parents)
        return Frontier(token_ids, first_rows + parents, self._seen_token_ids, self._visible)

    def build(self, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The counts[b] best nodes of each slot: token ids and parents as in Candidates, int64 [B, N] both."""
        chosen, parents = select(self._scores, self._parents, counts)
        return self._token_ids.gather(1, chosen.clamp(max=self._token_ids.shape[1] - 1)), parents
