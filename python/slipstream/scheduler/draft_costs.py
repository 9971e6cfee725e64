"""What a decode step costs, by batch size, warm slots and depth: measured, interpolated or hopefully guessed."""

from dataclasses import dataclass

from slipstream.scheduler.draft_curve import REACH, Curve, distance, on_line

OPTIMISM = 0.95  # of a guess: a depth that might be as good gets measured
REFEED_SHARE = 0.07  # of a warm step, until cold ones have been measured
COLD, WARM = 0, 5  # shares of warm slots: none, all; 1 to 4 are the quarters between


@dataclass
class _AtSize:
    """What the measurements say of one batch size; `costs` when somebody asks."""

    known: dict[int, float]
    plain: float | None
    costs: list[float] | None = None


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
        self._at_sizes: dict[int, _AtSize] = {}  # until the next sample

    def add(self, num_decode: int, num_warm: int, depth: int, step_s: float) -> bool:
        """Take the time of a step without prompt tokens.

        True if the machine has become faster or slower: then other depths need to be measured again.
        """
        share = _share(num_decode, num_warm)
        between = self._between(num_decode, num_warm, depth)
        if COLD < share < WARM and between is not None and (depth or self.plain(num_decode) is not None):
            self._mixed.setdefault((share, depth), Curve()).add(num_decode, step_s / between)
            return False
        curve = self._cold if share == COLD else self._warm[depth]  # also a mixed step, for want of anything better
        factor = curve.add(num_decode, step_s)
        self._at_sizes.clear()
        if factor == 1.0:
            return False
        for other in (self._cold, *self._warm):
            if other is not curve:
                other.rescale(factor)
        return True

    def plain(self, num_decode: int) -> float | None:
        """A step in which all slots are cold; None until one without drafts was measured near that size."""
        return self._at(num_decode).plain

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
        at = self._at(num_decode)
        if at.costs is None:
            nearby = at.known if len(at.known) > 1 else self._nearby(num_decode, at.known)
            at.costs = _fill(at.known, nearby or at.known, self._max_depth)
        return at.costs

    def _at(self, num_decode: int) -> _AtSize:
        if num_decode not in self._at_sizes:
            known = self._known(num_decode)
            plain, warm = self._cold.at(num_decode), known.get(0)
            if plain is not None and warm is not None:
                plain = min(plain, warm)
            elif self._warm[0].at(num_decode) is not None and warm is not None:
                plain = warm * self._cold_ratio(num_decode)
            self._at_sizes[num_decode] = _AtSize(known, plain)
        return self._at_sizes[num_decode]

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
            nearby = self._at(size).known
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


def _fill(known: dict[int, float], basis: dict[int, float], max_depth: int) -> list[float]:
    """`known` costs by depth, others guessed by those in `basis`, which has a depth in common with it."""
    if not basis:
        return []
    base, cost = next(iter((known or basis).items()))
    costs: list[float] = []
    for depth in range(max_depth + 1):
        least = max((cost for shallower, cost in known.items() if shallower < depth), default=0.0)
        costs.append(known.get(depth) or max(_guess(basis, depth) * cost / basis[base], least))
    return costs


def _guess(known: dict[int, float], depth: int) -> float:
    """A hopeful cost of a depth. By one known depth, shallower ones cost their share of rows, deeper ones no more."""
    if depth in known:
        return known[depth]
    if len(known) > 1:
        return on_line(known, depth) * OPTIMISM
    ((base, cost),) = known.items()
    return cost * min(1.0, (1 + depth) / (1 + base))
