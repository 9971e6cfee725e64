"""How likely each draft of a path is accepted, from what the last steps accepted."""

import math
from collections.abc import Iterable

PRIOR = 0.7  # worth trying; a few steps tell
PRIOR_WEIGHT = 4.0  # trials that a prior counts for
DOUBT_WEIGHT = 1.0  # the same, when the past is doubted
SHORT_TRIALS, SHORT_STEPS = 12, 3  # memory that notices a change
LONG_TRIALS, LONG_STEPS = 128, 16  # memory that the estimate is made of
SURPRISE = 2.5  # standard deviations between the two memories that chance does not explain
FADING_STEPS = 256  # evidence on drafts too deep to be verified lately


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
        self._positions = [_Position() for _ in range(depth)]
        self._positions[0].set(PRIOR_WEIGHT, PRIOR)
        self._expected = self._sum_up()

    def observe(self, outcomes: Iterable[tuple[int, int]]) -> None:
        """Take one step's (drafts that could have been accepted, drafts accepted) of each slot."""
        trials = [0] * len(self._positions)
        hits = [0] * len(self._positions)
        for depth, num_accepted in outcomes:
            for index in range(min(depth, num_accepted + 1, len(trials))):
                trials[index] += 1
                hits[index] += index < num_accepted
        for index, position in enumerate(self._positions):
            if trials[index]:
                position.add(trials[index], hits[index])
            elif index:  # the first one's evidence is dropped by `doubt` only, which has its price
                position.scale(math.exp(-1 / FADING_STEPS))
        self._expected = self._sum_up()

    def expected(self, depth: int) -> float:
        """Mean number of accepted drafts of a path of `depth`."""
        return self._expected[depth]

    def doubt(self) -> None:
        """Keep no more than a hint of the past: the next few trials decide."""
        first, *others = self._positions
        first.set(DOUBT_WEIGHT, (first.mean() + PRIOR) / 2)
        for position in others:
            position.scale(DOUBT_WEIGHT / max(DOUBT_WEIGHT, position.trials))
        self._expected = self._sum_up()

    def _sum_up(self) -> list[float]:
        """Expected numbers of accepted drafts for depths 0, 1, and so on."""
        sums, survival, probability = [0.0], 1.0, None
        for position in self._positions:
            probability = position.mean(probability)
            survival *= probability
            sums.append(sums[-1] + survival)
        return sums


class _Position:
    """Hits and trials of one position in a long memory, which is dropped when a short one contradicts it."""

    __slots__ = ("_hits", "_recent_hits", "_recent_trials", "trials")

    def __init__(self) -> None:
        self.trials = self._hits = 0.0
        self._recent_trials = self._recent_hits = 0.0

    def add(self, trials: int, hits: int) -> None:
        keep = math.exp(-min(trials / LONG_TRIALS, 1 / LONG_STEPS))
        self.trials = self.trials * keep + trials
        self._hits = self._hits * keep + hits
        keep = math.exp(-min(trials / SHORT_TRIALS, 1 / SHORT_STEPS))
        self._recent_trials = self._recent_trials * keep + trials
        self._recent_hits = self._recent_hits * keep + hits
        mean = (self._hits + 1) / (self.trials + 2)
        deviation = math.sqrt(mean * (1 - mean) / self._recent_trials)
        if abs(self._recent_hits / self._recent_trials - mean) > SURPRISE * deviation:
            self.trials, self._hits = self._recent_trials, self._recent_hits

    def mean(self, prior: float | None = None) -> float:
        if prior is None:
            return self._hits / self.trials
        return (self._hits + PRIOR_WEIGHT * prior) / (self.trials + PRIOR_WEIGHT)

    def set(self, trials: float, mean: float) -> None:
        self.trials = self._recent_trials = trials
        self._hits = self._recent_hits = trials * mean

    def scale(self, factor: float) -> None:
        self.trials *= factor
        self._hits *= factor
        self._recent_trials *= factor
        self._recent_hits *= factor
