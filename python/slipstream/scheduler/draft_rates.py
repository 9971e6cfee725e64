"""Expected tokens per second at each depth of drafts, from measured step times and acceptance."""

from slipstream.scheduler.draft_acceptance import AcceptanceEstimator
from slipstream.scheduler.draft_costs import StepCosts


class DraftRates:
    """What `costs` and `acceptance` say together. Steps are (decode rows, warm slots among them, depth)."""

    def __init__(self, max_depth: int, has_kv: bool) -> None:
        self.max_depth = max_depth
        self.acceptance = AcceptanceEstimator(max_depth)
        self.costs = StepCosts(max_depth, has_refeed=has_kv)

    def rate(self, num_decode: int, num_warm: int, depth: int) -> float:
        """Tokens per second; 0 before any step was measured."""
        cost = self.costs.estimate(num_decode, num_warm, depth)
        return (num_decode + num_warm * self.acceptance.expected(depth)) / cost if cost else 0.0

    def gain(self, num_decode: int, num_warm: int, depth: int) -> float | None:
        """Tokens per second over those of plain decoding, all slots cold; None while these are unknown."""
        size = self.costs.known_size(num_decode)
        if size is None:
            return None
        plain = self.costs.plain(size)
        return None if plain is None else self.rate(size, _scaled(num_warm, num_decode, size), depth) * plain / size

    def best_gain(self, num_decode: int) -> float | None:
        """The same of the best depth above 0, if all slots were warm."""
        gains = [self.gain(num_decode, num_decode, depth) for depth in range(1, self.max_depth + 1)]
        return max((gain for gain in gains if gain is not None), default=None)

    def won(self, num_decode: int, num_warm: int, depth: int, num_accepted: int) -> tuple[float, float] | None:
        """Seconds that a step won on plain decoding, and those of a plain step; None while these are unknown.

        Costs are the usual ones, so that an outlier is nobody's fault.
        """
        size = self.costs.known_size(num_decode)
        if size is None:
            return None
        plain = self.costs.plain(size)
        cost = self.costs.estimate(size, _scaled(num_warm, num_decode, size), depth)
        return None if plain is None or cost is None else (plain * (1 + num_accepted / num_decode) - cost, plain)


def _scaled(num_warm: int, num_decode: int, size: int) -> int:
    """As many warm slots among `size` as `num_warm` are among `num_decode`; some stay some."""
    return max(size * num_warm // num_decode, min(1, num_warm))
