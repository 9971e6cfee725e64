"""What a decode step costs, by batch size and depth: measured, scaled from another size, or hopefully guessed."""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

COLD = -1  # the depth of a step in which nobody is warm: depth 0 without the re-feed
REFEED_SHARE = 0.05  # of a warm step without drafts, until both kinds have been measured
FIXED_SHARE = 0.5  # of what drafts cost: the part that does not depend on how many slots have some
NUM_SAMPLES = 3  # that make a measurement, or contradict one
USUAL = 1.25  # factor up to which a sample is within the usual range
LEARNING_RATE = 0.1
SHORT_STAY = 24  # steps of one kind in a row; what changes later is the machine, and all kinds with it
REACH = 4.0  # factor between batch sizes across which the ratio of two costs tells something
DRAFT_SHARE = 0.03  # of a step, that one more draft takes at least, whatever noise says
DEEPER_SHARE = 0.1  # the same, as a guess of depths beyond all those measured
OPTIMISM = 0.95  # of a guess: a depth that might be as good gets measured


@dataclass
class _Cost:
    """Usual seconds of one kind of step; 0 until measured."""

    usual_s: float = 0.0
    latest: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_SAMPLES))

    def add(self, step_s: float) -> None:
        self.latest.append(step_s)
        if len(self.latest) == NUM_SAMPLES and self._is_contradicted:
            self.usual_s = statistics.median(self.latest)
        elif self.usual_s:
            within = min(max(step_s, self.usual_s / USUAL), self.usual_s * USUAL)
            self.usual_s += LEARNING_RATE * (within - self.usual_s)

    @property
    def _is_contradicted(self) -> bool:
        return min(self.latest) > self.usual_s * USUAL or max(self.latest) * USUAL < self.usual_s


class StepCosts:
    """Seconds of decode steps. How the kinds compare is learnt where one follows another.

    >>> costs = StepCosts(max_depth=3)
    >>> for depth, step_s in ((3, 0.02), (0, 0.01)):
    ...     for _ in range(3):
    ...         costs.add(4, 4, depth, step_s)
    >>> costs.estimate(4, 4, 3), round(costs.estimate(4, 4, 1), 4), costs.estimate(8, 8, 3)
    (0.02, 0.0127, 0.02)
    """

    def __init__(self, max_depth: int) -> None:
        self._max_depth = max_depth
        self._sizes: dict[int, dict[int, _Cost]] = {}  # by batch size and depth
        self._last: int | None = None  # kind
        self._stay = 0
        self._estimates: dict[int, dict[int, float]] = {}  # by batch size and kind; empty after every change

    def add(self, num_decode: int, num_warm: int, depth: int, step_s: float) -> None:
        """Take the time of a step without prompt tokens. Of a step with warm and cold slots nothing is learnt."""
        if 0 < num_warm < num_decode:
            return
        self._estimates.clear()
        size, kind = _rounded(num_decode), depth if num_warm else COLD
        cost = self._sizes.setdefault(size, {}).setdefault(kind, _Cost())
        if kind != self._last:
            self._last, self._stay = kind, 0
            cost.latest.clear()
        self._stay += 1
        before_s = cost.usual_s
        cost.add(step_s)
        if before_s and self._stay > SHORT_STAY:
            for other in (other for costs in self._sizes.values() for other in costs.values() if other is not cost):
                other.usual_s *= cost.usual_s / before_s

    def forget_warm(self) -> None:
        """What steps with warm slots cost is to be found out anew."""
        self._estimates.clear()
        for costs in self._sizes.values():
            for depth in range(self._max_depth + 1):
                costs.pop(depth, None)

    def estimate(self, num_decode: int, num_warm: int, depth: int) -> float | None:
        """None before any step was measured."""
        costs = self._estimates.get(num_decode)
        if costs is None:
            costs = self._estimates[num_decode] = self._costs(num_decode)
        if not costs:
            return None
        if not num_warm:
            return costs[COLD]
        share = FIXED_SHARE + (1 - FIXED_SHARE) * num_warm / num_decode
        return costs[COLD] + (costs[depth] - costs[COLD]) * share

    def _costs(self, num_decode: int) -> dict[int, float]:
        """Of all kinds; empty before any step was measured."""
        measured = self._measured(_rounded(num_decode))
        here = dict(measured)
        distances = {size: max(size / num_decode, num_decode / size) for size in self._sizes}
        for size in sorted(distances, key=distances.__getitem__):
            if here and (distances[size] > REACH or len(here) == self._max_depth + 2):
                break  # too far, as all that follow; or every kind is known
            there = self._measured(size)
            common = here.keys() & there.keys()
            if here and not common:
                continue
            scale = statistics.fmean(here[kind] / there[kind] for kind in common) if common else 1.0
            here = {kind: cost * scale for kind, cost in there.items()} | here
        if not here:
            return {}
        costs = {kind: _guess(here, kind) for kind in (COLD, 0)}
        for depth in range(1, self._max_depth + 1):
            least = costs[depth - 1] / (1 - DRAFT_SHARE)
            costs[depth] = measured.get(depth) or max(_guess(here, depth), least)
        return costs

    def _measured(self, size: int) -> dict[int, float]:
        """By kind. Of cold steps and those of depth 0 one stands in for the other."""
        known = {kind: cost.usual_s for kind, cost in self._sizes.get(size, {}).items() if cost.usual_s}
        if 0 not in known and COLD in known:
            known[0] = known[COLD] / (1 - REFEED_SHARE)
        least, costs = math.inf, {}
        for depth in sorted(known.keys() - {COLD}, reverse=True):
            costs[depth] = least = min(known[depth], least * (1 - DRAFT_SHARE))
        if 0 in costs:
            costs[COLD] = min(known.get(COLD, costs[0] * (1 - REFEED_SHARE)), costs[0])
        return costs


def _rounded(num_decode: int) -> int:
    """Three leading bits.

    >>> [_rounded(n) for n in (1, 7, 9, 16, 19, 39)]
    [1, 7, 8, 16, 16, 32]
    """
    shift = max(0, num_decode.bit_length() - 3)
    return num_decode >> shift << shift


def _guess(known: Mapping[int, float], kind: int) -> float:
    """The cost of a depth by those known: on a line between two; shallower ones cost less, deeper ones a little more.

    >>> _guess({1: 6.0, 3: 8.0}, 2), _guess({3: 10.0}, 0), _guess({0: 5.0}, 2)
    (6.6499999999999995, 4.0, 6.0)
    """
    if kind in known:
        return known[kind]
    below = max((depth for depth in known if 0 <= depth < kind), default=None)
    above = min((depth for depth in known if depth > kind), default=None)
    if above is None:
        assert below is not None
        return known[below] * (1 + DEEPER_SHARE * (kind - below))
    if below is None:
        return known[above] * (2 + max(kind, 0)) / (2 + above)
    slope = (known[above] - known[below]) / (above - below)
    return (known[below] + slope * (kind - below)) * OPTIMISM
