"""What drafts brought, from histograms of verify steps: entry i counts the steps of which i drafts were accepted."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest


def total(histograms: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The histogram of all steps together.

    >>> total([(1, 2), (), (0, 0, 5)])
    (1, 2, 5)
    """
    return tuple(map(sum, zip_longest(*histograms, fillvalue=0)))


def acceptance_length(histogram: Sequence[int]) -> float | None:
    """Mean tokens of a verify step, 1 + accepted / steps; None without a step.

    >>> acceptance_length((1, 0, 3))
    2.5
    """
    num_verify = sum(histogram)
    return 1 + sum(i * steps for i, steps in enumerate(histogram)) / num_verify if num_verify else None


def position_rates(histogram: Sequence[int]) -> list[float]:
    """Entry i: the share of the verify steps of which more than i drafts were accepted.

    >>> position_rates((1, 1, 2))
    [0.75, 0.5]
    """
    num_verify = sum(histogram)
    return [sum(histogram[i + 1 :]) / num_verify for i in range(len(histogram) - 1)] if num_verify else []
