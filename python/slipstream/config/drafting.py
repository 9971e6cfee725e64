"""How many drafts a step verifies: what scheduler and worker must agree on."""

from dataclasses import dataclass

MAX_DRAFTS = 63  # of one slot in one step; with the bonus token 64 rows


@dataclass(frozen=True)
class DraftShape:
    """Drafts of one step form a tree below the bonus token: every node has up to `topk` children, no path is longer
    than `depth`, and there are at most `num_nodes` drafts. With topk 1 the tree is a chain and num_nodes is depth.
    """

    depth: int
    topk: int
    num_nodes: int

    @property
    def is_chain(self) -> bool:
        return self.topk == 1

    def nodes(self, depth: int) -> int:
        """Drafts of one slot in a step whose paths have `depth` drafts at most.

        The first level has topk nodes, each further one topk * topk candidates (EAGLE-2: Li et al., arXiv 2406.16858).

        >>> DraftShape(depth=3, topk=1, num_nodes=3).nodes(2), DraftShape(depth=3, topk=4, num_nodes=7).nodes(1)
        (2, 4)
        """
        return min(self.num_nodes, self.topk + (depth - 1) * self.topk**2) if depth else 0

    def rows(self, depth: int) -> int:
        """KV rows from the committed length on that such a step may write, of the target or of the draft.

        The target has a row for the bonus token and for every draft; drafting a tree takes topk rows for every level
        but the last.

        >>> DraftShape(depth=3, topk=1, num_nodes=3).rows(3), DraftShape(depth=5, topk=8, num_nodes=7).rows(5)
        (4, 32)
        """
        return max(self.nodes(depth) + 1, self.topk * (depth - 1))
