"""What a decode step costs, by batch size, warm slots and depth: measured, interpolated, or guessed to be worth a try."""

from collections import deque
from statistics import median

NUM_SAMPLES = 9  # the median of so many forgets an outlier at once and an old measurement soon
MIN_SAMPLES = 3
OPTIMISM = 0.95  # of a guess: a depth that might be as good gets measured
REFEED_SHARE = 0.07  # of a step, until steps with cold slots have been measured
COLD, WARM = 0, 5  # shares of warm slots: none, all; 1 to 4 are the quarters between


class StepCosts:
    """Seconds of a step of `num_decode` decode rows, `num_warm` of them warm, at a depth. Only ratios have to be right."""

    def __init__(self, max_depth: int) -> None:
        self._max_depth = max_depth
        self._curves: dict[tuple[int, int], _Curve] = {}  # by share of warm slots and depth

    def add(self, num_decode: int, num_warm: int, depth: int, step_s: float) -> None:
        key = (_share(num_decode, num_warm), depth)
        self._curves.setdefault(key, _Curve()).add(num_decode, step_s)

    def is_known(self, num_decode: int, num_warm: int, depth: int) -> bool:
        return self._measured(_share(num_decode, num_warm), depth, num_decode) is not None

    def plain(self, num_decode: int) -> float | None:
        """A step in which all slots are cold; None before any step was measured."""
        measured = self._measured(COLD, 0, num_decode)
        if measured is not None:
            return measured
        warm = self._warm(num_decode, 0)
        return None if warm is None else warm * self._cold_ratio(num_decode)

    def estimate(self, num_decode: int, num_warm: int, depth: int) -> float | None:
        """None before any step was measured."""
        share = _share(num_decode, num_warm)
        if share == COLD:
            return self.plain(num_decode)
        if share == WARM:
            return self._warm(num_decode, depth)
        measured = self._measured(share, depth, num_decode)
        if measured is not None:
            return measured
        plain, warm = self.plain(num_decode), self._warm(num_decode, depth)
        if plain is None or warm is None:
            return None
        return plain + (warm - plain) * num_warm / num_decode

    def _measured(self, share: int, depth: int, num_decode: int) -> float | None:
        curve = self._curves.get((share, depth))
        return curve.at(num_decode) if curve else None

    def _warm(self, num_decode: int, depth: int) -> float | None:
        measured = self._measured(WARM, depth, num_decode)
        if measured is not None:
            return measured
        known = self._known(num_decode)
        if len(known) > 1:
            return _on_line(known, depth) * OPTIMISM
        nearby = self._nearby_depths(num_decode, known)
        if not known:
            return _guess(nearby, depth) if nearby else None
        ((base, cost),) = known.items()
        if base in nearby and len(nearby) > 1:
            return cost * _guess(nearby, depth) / nearby[base]
        return _guess(known, depth)

    def _known(self, num_decode: int) -> dict[int, float]:
        """Measured costs of warm steps by depth. At depth 0 a cold step stands in: it lacks the re-feed only."""
        known: dict[int, float] = {}
        for depth in range(self._max_depth + 1):
            measured = self._measured(WARM, depth, num_decode)
            if measured is not None:
                known[depth] = measured
        if 0 not in known:
            cold = self._measured(COLD, 0, num_decode)
            if cold is not None:
                known[0] = cold / self._cold_ratio(num_decode)
        return known

    def _nearby_depths(self, num_decode: int, known: dict[int, float]) -> dict[int, float]:
        """What is known at the nearest batch size that shares a depth with `known` and has another."""
        sizes = {size for curve in self._curves.values() for size in curve.sizes()}
        for size in sorted(sizes, key=lambda size: max(size / num_decode, num_decode / size)):
            nearby = self._known(size)
            if len(nearby) > len(known) and (not known or known.keys() & nearby.keys()):
                return nearby
        return {}

    def _cold_ratio(self, num_decode: int) -> float:
        cold, warm = self._curves.get((COLD, 0)), self._curves.get((WARM, 0))
        if cold and warm:
            sizes = cold.sizes() & warm.sizes()
            if sizes:
                size = min(sizes, key=lambda size: max(size / num_decode, num_decode / size))
                return min(1.0, cold.median(size) / warm.median(size))
        return 1 - REFEED_SHARE


class _Curve:
    """Median step times over batch size: sizes that share their three leading bits are one point of the curve."""

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {}
        self._medians: dict[int, float] = {}  # of points with enough samples

    def add(self, num_decode: int, step_s: float) -> None:
        size = _rounded(num_decode)
        samples = self._samples.setdefault(size, deque(maxlen=NUM_SAMPLES))
        samples.append(step_s)
        if len(samples) >= MIN_SAMPLES:
            self._medians[size] = median(samples)

    def sizes(self) -> set[int]:
        return set(self._medians)

    def median(self, size: int) -> float:
        return self._medians[size]

    def at(self, num_decode: int) -> float | None:
        """Measured, or on the line between two measured sizes at most a factor of two away."""
        size = _rounded(num_decode)
        if size in self._medians:
            return self._medians[size]
        below = max((other for other in self._medians if size / 2 <= other < size), default=None)
        above = min((other for other in self._medians if size < other <= size * 2), default=None)
        if below is None or above is None:
            return None
        return _on_line({below: self._medians[below], above: self._medians[above]}, size)


def _rounded(num_decode: int) -> int:
    """Three leading bits.

    >>> [_rounded(n) for n in (1, 7, 9, 16, 19, 39)]
    [1, 7, 8, 16, 16, 32]
    """
    shift = max(0, num_decode.bit_length() - 3)
    return num_decode >> shift << shift


def _share(num_decode: int, num_warm: int) -> int:
    """Class of the share of warm slots: none, quarters, all.

    >>> [_share(8, warm) for warm in (0, 1, 2, 3, 7, 8)]
    [0, 1, 1, 2, 4, 5]
    """
    if num_warm >= num_decode:
        return WARM
    return -(-4 * num_warm // num_decode)


def _on_line(points: dict[int, float], x: int) -> float:
    """The value at x of the line through the two points nearest to it; never below the least of them by extrapolation.

    >>> _on_line({0: 4.0, 2: 8.0, 3: 9.0}, 1), _on_line({0: 4.0, 1: 5.0}, 3)
    (6.0, 7.0)
    """
    below = [point for point in points if point <= x]
    above = [point for point in points if point > x]
    if below and above:
        low, high = max(below), min(above)
    else:
        low, high = sorted(sorted(points, key=lambda point: abs(point - x))[:2])
    value = points[low] + (points[high] - points[low]) * (x - low) / (high - low)
    return max(value, min(points.values()) / 2)


def _guess(known: dict[int, float], depth: int) -> float:
    """A hopeful cost of a depth. From one depth: shallower ones cost their share of rows, deeper ones no more."""
    if depth in known:
        return known[depth]
    if len(known) > 1:
        return _on_line(known, depth) * OPTIMISM
    ((base, cost),) = known.items()
    return cost * min(1.0, (1 + depth) / (1 + base))
