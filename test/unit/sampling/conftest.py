"""What the statistical tests of this room share."""

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from support.one_thread import one_thread

ChiSquare = Callable[[torch.Tensor, Sequence[float] | torch.Tensor], float]


@pytest.fixture(autouse=True)
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


def chi_square_p(drawn: torch.Tensor, probabilities: Sequence[float] | torch.Tensor) -> float:
    """p-value of Pearson's goodness-of-fit test of `drawn` (values 0 to n-1) against n probabilities.

    An impossible value among the drawn ones gives 0. Values expected less than five times are pooled.
    """
    expected = torch.as_tensor(probabilities, dtype=torch.float64) * len(drawn)
    observed = torch.bincount(drawn, minlength=len(expected)).double()
    assert len(observed) == len(expected)
    if observed[expected == 0].any():
        return 0.0
    order = expected.argsort()
    num_pooled = int((expected[order].cumsum(0) < 5).sum()) + 1  # the fewest of the rarest that are expected five times
    expected, observed = (
        torch.cat([counts[order[:num_pooled]].sum(0, keepdim=True), counts[order[num_pooled:]]])
        for counts in (expected, observed)
    )
    assert len(expected) > 1, "nothing to compare: one value holds everything"
    statistic = ((observed - expected) ** 2 / expected).sum()
    degrees = torch.tensor(len(expected) - 1, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees / 2, statistic / 2))


@pytest.fixture(scope="session")
def chi_square() -> ChiSquare:
    return chi_square_p
