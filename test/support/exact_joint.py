"""Whether a server's first tokens have their exact joint distribution, by Pearson's chi-square test."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import torch

from slipstream.messages.sampling import SamplingParams
from support.exact_sampling import exact_distribution

Tokens = tuple[int, ...]


def joint_distribution(
    params: SamplingParams, logits_after: Callable[[list[int]], list[float]], prompt: list[int], length: int
) -> dict[Tokens, float]:
    """Probabilities of the first `length` tokens after `prompt`, those that are possible.

    logits_after: the model's logits for the token after these.
    """
    joint: dict[Tokens, float] = {(): 1.0}
    for _ in range(length):
        longer = {}
        for answer, prob in joint.items():
            logits = logits_after([*prompt, *answer])
            for token, share in enumerate(exact_distribution(params, logits, prompt, answer)):
                if share > 0:
                    longer[(*answer, token)] = prob * share
        joint = longer
    assert math.isclose(sum(joint.values()), 1.0)
    return joint


def chi_square_p(drawn: Iterable[Tokens], probabilities: Mapping[Tokens, float]) -> float:
    """p-value of Pearson's goodness-of-fit test; 0 where something impossible was drawn.

    What is expected less than five times is pooled.
    """
    observed = Counter(drawn)
    total = sum(observed.values())
    if any(answer not in probabilities for answer in observed):
        return 0.0
    cells: list[tuple[float, float]] = []  # (expected, observed)
    pool_expected = pool_observed = 0.0
    for answer, prob in sorted(probabilities.items(), key=lambda item: item[1]):
        if prob * total < 5 or (pool_expected < 5 and pool_expected > 0):
            pool_expected, pool_observed = pool_expected + prob * total, pool_observed + observed[answer]
        else:
            cells.append((prob * total, float(observed[answer])))
    if pool_expected:
        cells.append((pool_expected, pool_observed))
    assert len(cells) > 1, "nothing to compare: one value holds everything"
    statistic = sum((found - expected) ** 2 / expected for expected, found in cells)
    degrees, statistic_half = (torch.tensor(value, dtype=torch.float64) for value in (len(cells) - 1, statistic / 2))
    return float(torch.special.gammaincc(degrees / 2, statistic_half))
