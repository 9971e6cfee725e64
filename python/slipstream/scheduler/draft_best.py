"""The best depth of drafts by what is known, and now and then a look at the others."""

from collections.abc import Iterable

from slipstream.scheduler.draft_rates import DraftRates

SWITCH_GAIN = 1.03  # a deeper depth must promise that much more; a shallower one no less
FIRST_PAUSE_STEPS, LAST_PAUSE_STEPS = 64, 256  # between looks at other depths: doubles while the best stays the best
CHANGE_PAUSE_STEPS = 16  # when the machine has become faster or slower
LOOK_STEPS = 5  # at another depth
LOOK_REACH = 0.85  # a depth is worth a look if at this share of its cost it would be the best
BLIND_STEPS = 16  # in a row with prompts beside them, which tell no costs: then only depths already measured are chosen
BLIND_ACCEPTANCE = 0.2  # of the first draft, from which drafting is worth its cost when that is not known


class BestDepth:
    """Depth with the highest rate, changed only for a gain. Unmeasured depths have hopeful rates, so get measured."""

    def __init__(self, rates: DraftRates) -> None:
        self._rates = rates
        self.depth = rates.max_depth
        self.age = 0  # steps since it changed or another was looked at
        self._pause = FIRST_PAUSE_STEPS
        self._num_looks = 0
        self._looked_at = 0  # the last other depth
        self._looks_left = 0
        self._since_measured = 0  # steps

    def choose(self, num_decode: int, num_warm: int, may_look: bool) -> int:
        """The best depth, or another one if it is time for a look at it."""
        self._update(num_decode, num_warm)
        if self.depth and self.age >= self._pause and may_look and not self._is_blind:
            self._start_look(num_decode, num_warm)
        if self._looks_left:
            self._looks_left -= 1
            return self._looked_at
        return self.depth

    def observe(self, was_measured: bool, has_changed: bool) -> None:
        """A step has returned; its time may have been a measure, and may show that the machine has changed."""
        self.age += 1
        self._since_measured = 0 if was_measured else self._since_measured + 1
        if has_changed:
            self._pause = CHANGE_PAUSE_STEPS

    @property
    def _is_blind(self) -> bool:
        return self._since_measured > BLIND_STEPS

    def _update(self, num_decode: int, num_warm: int) -> None:
        depths: Iterable[int] = range(self._rates.max_depth + 1)
        if self._is_blind:
            depths = [depth for depth in depths if self._rates.costs.is_measured(num_decode, depth)]
            if len(depths) < 2:
                self._set(self._rates.max_depth if self._rates.acceptance.expected(1) > BLIND_ACCEPTANCE else 0)
                return
        rates = {depth: self._rates.rate(num_decode, num_warm, depth) for depth in depths}
        best = max(rates, key=lambda depth: rates[depth])
        needed = SWITCH_GAIN if best > self.depth else 1.0
        if rates[best] >= rates.get(self.depth, 0.0) * needed and rates[best] > 0:
            self._set(best)

    def _set(self, depth: int) -> None:
        if depth != self.depth:
            self.depth = depth
            self.age = 0
            self._pause = FIRST_PAUSE_STEPS

    def _start_look(self, num_decode: int, num_warm: int) -> None:
        """At the next depth in turn; every other time only at one that might well turn out best."""
        self.age = 0
        self._pause = min(2 * self._pause, LAST_PAUSE_STEPS)
        self._num_looks += 1
        reach = LOOK_REACH if self._num_looks % 2 else 0.0
        least = self._rates.rate(num_decode, num_warm, self.depth) * reach
        num_depths = self._rates.max_depth + 1
        for depth in ((self._looked_at + step) % num_depths for step in range(1, num_depths + 1)):
            if depth != self.depth and self._rates.rate(num_decode, num_warm, depth) > least:
                self._looked_at = depth
                self._looks_left = LOOK_STEPS
                return
