"""How far a decode step may write: pure arithmetic of rows (positions of KV) and drafts."""


def rows_needed(num_rows: int, length_ub: int, limit: int, *, is_chain: bool) -> int:
    """Rows from position 0 that must have pages before a step is planned that may write `num_rows`: DraftShape.rows().

    The step begins at the committed length, which is length_ub - 1 at most: the bonus token has no row yet. A request
    whose length reaches `limit` is over: nothing of a step from there on counts. Rows past the pages go to the sink
    page; for a chain these are rows of positions past the limit. A tree's rows are in no order of position, so all of
    a step that still counts have pages.

    Two steps with 3 drafts are in flight, of 10 known tokens: 10 + 4 + 4 at most. The next begins at row 17 at most
    and has 4 rows. With a limit of 19 tokens, 19 rows are enough.

    >>> rows_needed(4, length_ub=18, limit=100, is_chain=True), rows_needed(4, length_ub=18, limit=19, is_chain=True)
    (21, 19)
    >>> rows_needed(1, length_ub=18, limit=100, is_chain=True), rows_needed(1, length_ub=18, limit=12, is_chain=True)
    (18, 11)
    >>> rows_needed(8, length_ub=18, limit=19, is_chain=False)  # a tree of 7 drafts: 17 + 8
    25
    """
    begin = min(length_ub - 1, limit - 2)
    end = begin + num_rows
    return min(end, limit) if is_chain else end


def useful_depth(depth: int, length_lb: int, limit: int, max_draft_tokens: int | None) -> int:
    """Longest path of drafts, up to `depth`, that a step can use: the token after the last accepted draft comes on top.

    A request that may become 10 tokens long and has 8, or will have, gets 2 more: one draft and the token after it.

    >>> useful_depth(3, length_lb=8, limit=10, max_draft_tokens=None), useful_depth(3, 8, 20, max_draft_tokens=2)
    (1, 2)
    """
    depth = max(min(depth, limit - length_lb - 1), 0)
    return depth if max_draft_tokens is None else min(depth, max_draft_tokens)
