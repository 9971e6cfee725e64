"""Measured times over batch size, and the lines drawn through them."""

from collections import deque

NUM_SAMPLES = 15  # remembered of a point
MIN_SAMPLES = 3  # that make a point
TRIMMED_SHARE = 7  # one sample in so many, at least one, is left out at either end: outliers
SURPRISE_MARGIN = 0.1  # beyond the usual range: MIN_SAMPLES in a row there mean that the machine has changed
REACH = 2.0  # factor between batch sizes across which something may be concluded


class Curve:
    """Usual time of a step over batch size: sizes that share their three leading bits are one point of the curve.

    >>> curve = Curve()
    >>> for time in (5.0, 5.1, 80.0):
    ...     _ = curve.add(16, time)
    >>> curve.at(17), curve.at(20)
    (5.1, None)
    """

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {}
        self.points: dict[int, float] = {}  # sizes that have been measured often enough

    def add(self, num_decode: int, time: float) -> float:
        """Take a measurement. 1.0, or the factor by which the last few contradict those before them, now forgotten."""
        size = _rounded(num_decode)
        samples = self._samples.setdefault(size, deque(maxlen=NUM_SAMPLES))
        samples.append(time)
        has_changed = _contradict(samples)
        if has_changed:
            while len(samples) > MIN_SAMPLES:
                samples.popleft()
        if len(samples) < MIN_SAMPLES:
            return 1.0
        before, middle = self.points.get(size), _middle(list(samples))
        self.points[size] = sum(middle) / len(middle)
        return self.points[size] / before if has_changed and before else 1.0

    def rescale(self, factor: float) -> None:
        """Another curve's measurements have changed by this factor: assume the same here, until measured again."""
        self.points = {size: time * factor for size, time in self.points.items()}
        for samples in self._samples.values():
            samples.clear()

    def at(self, num_decode: int) -> float | None:
        """Measured, or on the line between two measured sizes within reach."""
        size = _rounded(num_decode)
        if size in self.points:
            return self.points[size]
        near = {other: time for other, time in self.points.items() if distance(other, size) <= REACH}
        return on_line(near, size) if near and min(near) < size < max(near) else None


def distance(size: int, other: int) -> float:
    """Factor between two batch sizes."""
    return max(size / other, other / size)


def on_line(points: dict[int, float], x: int) -> float:
    """The value at x of the line through the two points that enclose it, or else the two nearest.

    Far out, a falling line ends at half of the least value.

    >>> on_line({0: 4.0, 2: 8.0, 3: 9.0}, 1), on_line({0: 4.0, 1: 5.0}, 3)
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


def _rounded(num_decode: int) -> int:
    """Three leading bits.

    >>> [_rounded(n) for n in (1, 7, 9, 16, 19, 39)]
    [1, 7, 8, 16, 16, 32]
    """
    shift = max(0, num_decode.bit_length() - 3)
    return num_decode >> shift << shift


def _middle(samples: list[float]) -> list[float]:
    trimmed = max(1, len(samples) // TRIMMED_SHARE)
    return sorted(samples)[trimmed:-trimmed]


def _contradict(samples: deque[float]) -> bool:
    """Whether the latest samples all lie well above or all well below what those before them agree on."""
    before, latest = list(samples)[:-MIN_SAMPLES], list(samples)[-MIN_SAMPLES:]
    if len(before) < 2 * MIN_SAMPLES:
        return False
    middle = _middle(before)
    return min(latest) > middle[-1] * (1 + SURPRISE_MARGIN) or max(latest) < middle[0] * (1 - SURPRISE_MARGIN)
