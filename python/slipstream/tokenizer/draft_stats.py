"""What speculation did for one choice, where a stop string ended it in the middle of a step."""

from slipstream.messages.sampling import DraftStats


def up_to_stop(before: DraftStats | None, now: DraftStats | None, num_read: int) -> DraftStats | None:
    """`now` without the accepted drafts that came after the first `num_read` tokens of its last step.

    `before` is how it stood before that step. The scheduler does not know stop strings and counts the whole step.

    >>> up_to_stop(DraftStats(3, (0, 0, 1, 0)), DraftStats(6, (0, 0, 1, 1)), 1).accepted
    (0, 1, 1, 0)
    """
    if now is None:
        return before
    accepted = list(now.accepted)
    earlier = before.accepted if before is not None else ()
    for count in range(num_read + 1, len(accepted)):
        if accepted[count] > (earlier[count] if count < len(earlier) else 0):  # the last step's
            accepted[count] -= 1
            accepted[num_read] += 1
    return DraftStats(now.num_draft_tokens, tuple(accepted))
