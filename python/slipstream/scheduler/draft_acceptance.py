"""How likely each draft of a path is accepted, from what the last steps accepted."""

import math
from collections import Counter
from collections.abc import Iterable

PRIOR = 0.7  # worth trying; a few steps tell
PRIOR_WEIGHT = 4.0  # trials that a prior counts for
DOUBT_WEIGHT = 1.0  # the same for what was known before it was doubted
MEMORY_TRIALS, MEMORY_STEPS = 64, 8  # after as many of either, what was before counts for a third
FADING_STEPS = 256  # the same for drafts too deep to be verified lately


class AcceptanceEstimator:
    """P(draft i of a path is accepted | those before it are), i below `depth`, fading with time.

    A position's prior is the estimate of the one before it, so that depths not seen lately follow the seen ones.

    >>> estimator = AcceptanceEstimator(2)
    >>> round(estimator.expected(2), 2)  # 0.7 + 0.7 * 0.7
    1.19
    >>> estimator.observe([(2, 0)] * 40)
    >>> estimator.expected(2) < 0.15
    True
    """

    def __init__(self, depth: int) -> None:
        self._trials = [PRIOR_WEIGHT] + [0.0] * (depth - 1)
        self._hits = [PRIOR_WEIGHT * PRIOR] + [0.0] * (depth - 1)
        self._expected = self._sum_up()

    def observe(self, outcomes: Iterable[tuple[int, int]]) -> None:
        """Take one step's (drafts that could have been accepted, drafts accepted) of each slot."""
        trials = [0] * len(self._trials)
        hits = [0] * len(self._trials)
        for (depth, num_accepted), num_slots in Counter(outcomes).items():
            for index in range(min(depth, num_accepted + 1, len(trials))):
                trials[index] += num_slots
                hits[index] += num_slots * (index < num_accepted)
        for index, count in enumerate(trials):
            if not count and index == 0:
                continue  # evidence on the first one is dropped by doubt() only, which has its price
            keep = math.exp(-min(count / MEMORY_TRIALS, 1 / MEMORY_STEPS) if count else -1 / FADING_STEPS)
            self._trials[index] = self._trials[index] * keep + count
            self._hits[index] = self._hits[index] * keep + hits[index]
        self._expected = self._sum_up()

    def expected(self, depth: int) -> float:
        """Mean number of accepted drafts of a path of `depth`."""
        return self._expected[depth]

    def doubt(self) -> None:
        """Keep no more than a hint of the past: the next few trials decide."""
        factor = DOUBT_WEIGHT / max(self._trials[0], DOUBT_WEIGHT)
        others = [0.0] * (len(self._trials) - 1)
        self._trials, self._hits = [self._trials[0] * factor, *others], [self._hits[0] * factor, *others]
        self._expected = self._sum_up()

    def _sum_up(self) -> list[float]:
        """Expected numbers of accepted drafts for depths 0, 1, and so on."""
        probability = survival = self._hits[0] / self._trials[0]
        sums = [0.0, survival]
        for trials, hits in zip(self._trials[1:], self._hits[1:], strict=True):
            probability = (hits + PRIOR_WEIGHT * probability) / (trials + PRIOR_WEIGHT)
            survival *= probability
            sums.append(sums[-1] + survival)
        return sums
