"""What a decode step costs, by batch size, warm slots and depth: measured, interpolated, or guessed to be worth a try."""

from slipstream.scheduler.draft_curve import REACH, Curve, distance, on_line

OPTIMISM = 0.95  # of a guess: a depth that might be as good gets measured
REFEED_SHARE = 0.07  # of a warm step, until cold ones have been measured
COLD, WARM = 0, 5  # shares of warm slots: none, all; 1 to 4 are the quarters between


class StepCosts:
    """Seconds of a step of `num_decode` decode rows, `num_warm` of them warm, at a depth.

    Steps in which all slots are warm, or all cold, are measured as they are; of mixed ones, how far they are from the
    rule of three between the two. A shallower step is never taken for dearer than a deeper one, whatever noise says.
    """

    def __init__(self, max_depth: int, has_refeed: bool) -> None:
        self._max_depth = max_depth
        self._default_cold_ratio = 1 - REFEED_SHARE if has_refeed else 1.0
        self._cold = Curve()
        self._warm = [Curve() for _ in range(max_depth + 1)]
        self._mixed: dict[tuple[int, int], Curve] = {}  # by share of warm slots and depth: over the rule of three
        self._cache: dict[int, list[float]] = {}  # of `_warm_costs`, until the next sample

    def add(self, num_decode: int, num_warm: int, depth: int, step_s: float) -> bool:
        """Take the time of a step without prompt tokens.

        True if the machine has become faster or slower: then other depths need to be measured again.
        """
        self._cache.clear()
        share = _share(num_decode, num_warm)
        if share == COLD or share == WARM:
            curve = self._cold if share == COLD else self._warm[depth]
            factor = curve.add(num_decode, step_s)
            if factor == 1.0:
                return False
            for other in (self._cold, *self._warm):
                if other is not curve:
                    other.rescale(factor)
            return True
        between = self._between(num_decode, num_warm, depth)
        if between is not None:
            self._mixed.setdefault((share, depth), Curve()).add(num_decode, step_s / between)
            self._cache.clear()
        return False

    def plain(self, num_decode: int) -> float | None:
        """A step in which all slots are cold; None until one without drafts was measured near that size."""
        cold, warm = self._cold.at(num_decode), self._known(num_decode).get(0)
        if cold is None:
            return None if self._warm[0].at(num_decode) is None or warm is None else warm * self._cold_ratio(num_decode)
        return cold if warm is None else min(cold, warm)

    def known_size(self, num_decode: int) -> int | None:
        """The batch size nearest to this one, within reach, whose plain step is known."""
        if self.plain(num_decode) is not None:
            return num_decode
        return _nearest({*self._cold.points, *self._warm[0].points}, num_decode)

    def is_measured(self, num_decode: int, depth: int) -> bool:
        """Whether steps of that depth, of about this size, have been measured."""
        curves = [self._warm[depth]] if depth else [self._warm[0], self._cold]
        return any(_nearest(set(curve.points), num_decode) is not None for curve in curves)

    def estimate(self, num_decode: int, num_warm: int, depth: int) -> float | None:
        """None before any step was measured."""
        share = _share(num_decode, num_warm)
        if share == WARM:
            costs = self._warm_costs(num_decode)
            return costs[depth] if costs else None
        between = self._between(num_decode, num_warm, depth)
        mixed = self._mixed.get((share, depth))
        return between if mixed is None or between is None else between * (mixed.at(num_decode) or 1.0)

    def _between(self, num_decode: int, num_warm: int, depth: int) -> float | None:
        """By rule of three."""
        costs, plain = self._warm_costs(num_decode), self.plain(num_decode)
        if not costs:
            return plain
        if plain is None:
            plain = costs[0] * self._cold_ratio(num_decode)
        return plain + (costs[depth] - plain) * num_warm / num_decode

    def _warm_costs(self, num_decode: int) -> list[float]:
        """Costs by depth of steps in which all slots are warm; empty before any step was measured."""
        if num_decode not in self._cache:
            known = self._known(num_decode)
            nearby = known if len(known) > 1 else self._nearby(num_decode, known)
            basis = nearby or known
            if basis:
                ((base, cost), *_) = (known or basis).items()
                scale = cost / basis[base]
                depths = range(self._max_depth + 1)
                self._cache[num_decode] = [known.get(depth) or _guess(basis, depth) * scale for depth in depths]
            else:
                self._cache[num_decode] = []
        return self._cache[num_decode]

    def _known(self, num_decode: int) -> dict[int, float]:
        """Measured costs of warm steps by depth. At depth 0 a cold step stands in: it lacks the re-feed only."""
        known: dict[int, float] = {}
        for depth in range(self._max_depth, -1, -1):
            measured = self._warm[depth].at(num_decode)
            if measured is None and depth == 0:
                cold = self._cold.at(num_decode)
                measured = None if cold is None else cold / self._cold_ratio(num_decode)
            if measured is not None:
                known[depth] = min(measured, *known.values()) if known else measured
        return known

    def _nearby(self, num_decode: int, known: dict[int, float]) -> dict[int, float]:
        """What is known at the nearest batch size that has more than `known`, all of it and something else.

        The ratio of two depths changes with size, so that it serves within reach only; but if nothing is known here,
        any size is better than none.
        """
        sizes = {size for curve in (self._cold, *self._warm) for size in curve.points}
        for size in sorted(sizes, key=lambda size: distance(size, num_decode)):
            if known and distance(size, num_decode) > REACH:
                break
            nearby = self._known(size)
            if len(nearby) > len(known) and known.keys() <= nearby.keys():
                return nearby
        return {}

    def _cold_ratio(self, num_decode: int) -> float:
        """Cost of a cold step over a warm one's at depth 0."""
        sizes = self._cold.points.keys() & self._warm[0].points.keys()
        if not sizes:
            return self._default_cold_ratio
        size = min(sizes, key=lambda size: distance(size, num_decode))
        return min(1.0, self._cold.points[size] / self._warm[0].points[size])


def _nearest(sizes: set[int], num_decode: int) -> int | None:
    size = min(sizes, key=lambda size: distance(size, num_decode), default=None)
    return size if size is not None and distance(size, num_decode) <= REACH else None


def _share(num_decode: int, num_warm: int) -> int:
    """Class of the share of warm slots: none, quarters, all.

    >>> [_share(8, warm) for warm in (0, 1, 2, 3, 7, 8)]
    [0, 1, 1, 2, 4, 5]
    """
    if num_warm >= num_decode:
        return WARM
    return -(-4 * num_warm // num_decode)


def _guess(known: dict[int, float], depth: int) -> float:
    """A hopeful cost of a depth. From a single known one: shallower ones cost their share of rows, deeper ones no more."""
    if depth in known:
        return known[depth]
    if len(known) > 1:
        return on_line(known, depth) * OPTIMISM
    ((base, cost),) = known.items()
    return cost * min(1.0, (1 + depth) / (1 + base))
