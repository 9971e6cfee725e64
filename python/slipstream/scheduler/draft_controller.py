"""How many drafts the next step verifies, and whether drafting is worth keeping draft KV for.

    choose()       the depth with the most expected tokens per second, by measured step costs and acceptance
    goes_cold()    drafting has not paid for a while: drop draft KV, so that it costs nothing
    admits_warm()  while cold, a scout now and then: one warm sequence whose acceptance decides whether drafting returns

What was not tried lately is tried again, for a few steps and after a pause that keeps its cost near 1 % of the time.
"""

from dataclasses import dataclass

from slipstream.config.drafting import DraftShape
from slipstream.scheduler.draft_acceptance import AcceptanceEstimator
from slipstream.scheduler.draft_costs import StepCosts

SWITCH_GAIN = 1.03  # a deeper depth must promise that much more; a shallower one no less
BLIND_ACCEPTANCE = 0.2  # of the first draft, from which drafting is worth it while no cost is known
LOOK_STEPS = 4  # at another depth
FIRST_LOOK_PAUSE, LAST_LOOK_PAUSE = 64, 256  # steps; doubles while the best depth stays the best
LOSING_STEPS = 32  # in a row without hope of a gain, until running slots go cold
RETURN_GAIN = 1.05  # over plain decoding, to keep draft KV again
RETURN_RISE = 0.3  # of the first draft's acceptance, worth a return whatever drafts cost when last measured
FIRST_COLD_PAUSE, LAST_COLD_PAUSE = 128, 2048  # steps until the next scout; doubles when a return has failed
FAILED_STEPS = 256  # a return has failed if drafting does not pay for so long
SCOUT_OUTCOMES = 16  # verified drafts of a scout that decide
LEAST_OUTCOMES = 4  # fewer say nothing; so many, all rejected, are enough
SCOUT_PATIENCE = 256  # steps for a scout to tell


@dataclass(frozen=True)
class ObservedStep:
    """What a step did: `outcomes` are (drafts verified, drafts accepted) of each slot that verified drafts, untrimmed.

    `step_s` is its time in seconds, `depth` the plan's. Prompt tokens beside the decode rows make its time no measure.
    """

    num_decode: int
    num_warm: int
    depth: int
    num_prompt_tokens: int
    step_s: float
    outcomes: list[tuple[int, int]]


@dataclass
class _Scout:
    """One warm sequence while all others are cold; `age` in steps since it was admitted."""

    age: int = 0
    num_outcomes: int = 0
    num_accepted: int = 0

    @property
    def has_told(self) -> bool:
        least = SCOUT_OUTCOMES if self.num_accepted else LEAST_OUTCOMES
        return self.num_outcomes >= least or self.age > SCOUT_PATIENCE

    @property
    def has_hope(self) -> bool:
        return self.num_outcomes >= LEAST_OUTCOMES and self.num_accepted > 0


class DraftController:
    """Pure decisions from observed steps, which lag plans by a few steps. Not adaptive: always the full depth.

    `has_kv` False (n-gram): every slot is warm at no cost, so none goes cold.
    """

    def __init__(self, shape: DraftShape, adaptive: bool, has_kv: bool) -> None:
        self._max_depth = shape.depth
        self._adaptive = adaptive
        self._has_kv = has_kv
        self._acceptance = AcceptanceEstimator(shape.depth)
        self._costs = StepCosts(shape.depth)
        self._depth = self._best = shape.depth
        self._look_depth = self._looks_left = 0
        self._since_look = 0  # steps, as all below; also since the best depth changed
        self._look_pause = FIRST_LOOK_PAUSE
        self._losing = 0
        self._is_cold = False  # new sequences are cold but for scouts
        self._since_turn = 0  # to the cold, back, or to the last scout's end
        self._cold_pause = FIRST_COLD_PAUSE
        self._has_returned = False
        self._given_up_at = 0.0  # the first draft's acceptance when drafting was given up
        self._scout: _Scout | None = None
        self._drops_scout = False
        self._num_decode = 1  # of the last step observed

    @property
    def depth(self) -> int:
        """Of the most recent choice."""
        return self._depth

    # ---- decisions

    def choose(self, num_decode: int, num_warm: int) -> int:
        """Depth of the step being planned, which has decode rows; 0: plain decoding."""
        if num_warm == 0:
            self._depth = 0
        elif not self._adaptive:
            self._depth = self._max_depth
        elif self._is_cold:
            self._depth = 1 if self._scout is not None else 0
        else:
            self._update_best(num_decode, num_warm)
            self._depth = self._look_or_best()
        return self._depth

    def admits_warm(self) -> bool:
        """Whether a sequence admitted now is to keep draft KV. Asked once for each admission."""
        if not self._is_cold:
            return True
        if self._scout is not None or self._since_turn < self._cold_pause:
            return False
        if self._gain(self._num_decode) > RETURN_GAIN:  # the batch is another one now
            self._leave_cold()
        else:
            self._acceptance.doubt()
            self._scout = _Scout()
        return True

    def goes_cold(self) -> bool:
        """Whether all running warm slots are to give up their draft KV now. Asked once per plan."""
        if self._is_cold:
            drops, self._drops_scout = self._drops_scout, False
            return drops
        if not self._has_kv or self._losing < LOSING_STEPS:
            return False
        has_failed = self._has_returned and self._since_turn < FAILED_STEPS
        self._cold_pause = min(2 * self._cold_pause, LAST_COLD_PAUSE) if has_failed else FIRST_COLD_PAUSE
        self._given_up_at = self._acceptance.expected(1)
        self._is_cold = True
        self._since_turn = 0
        return True

    def _update_best(self, num_decode: int, num_warm: int) -> None:
        rates = [self._rate(num_decode, num_warm, depth) for depth in range(self._max_depth + 1)]
        best = max(range(len(rates)), key=lambda depth: rates[depth])
        if not any(rates):
            best = self._max_depth if self._acceptance.expected(1) > BLIND_ACCEPTANCE else 0
        elif best > self._best and rates[best] < SWITCH_GAIN * rates[self._best]:
            return
        if best != self._best:
            self._best = best
            self._since_look, self._looks_left, self._look_pause = 0, 0, FIRST_LOOK_PAUSE

    def _look_or_best(self) -> int:
        """The best depth, or the next shallower or deeper one if it is time for a look at it."""
        if self._since_look >= self._look_pause:
            self._since_look = 0
            self._look_pause = min(2 * self._look_pause, LAST_LOOK_PAUSE)
            self._looks_left = LOOK_STEPS
            is_up = self._best == 0 or (self._look_depth < self._best < self._max_depth)
            self._look_depth = self._best + (1 if is_up else -1)
            if self._best == 0:
                self._acceptance.doubt()
        if self._looks_left:
            self._looks_left -= 1
            return self._look_depth
        return self._best

    def _rate(self, num_decode: int, num_warm: int, depth: int) -> float:
        """Expected tokens per second; 0 before any step was measured."""
        cost = self._costs.estimate(num_decode, num_warm, depth)
        return (num_decode + num_warm * self._acceptance.expected(depth)) / cost if cost else 0.0

    def _gain(self, num_decode: int) -> float:
        """Tokens per second over those of plain decoding, at the best depth above 0, if all slots were warm."""
        plain = self._rate(num_decode, 0, 0)
        best = max(self._rate(num_decode, num_decode, depth) for depth in range(1, self._max_depth + 1))
        return best / plain if plain else 1.0

    # ---- what steps tell

    def observe(self, step: ObservedStep) -> None:
        """A step has returned."""
        if not self._adaptive or not step.num_decode:
            return
        self._num_decode = step.num_decode
        self._since_look += 1
        self._since_turn += 1
        if step.num_prompt_tokens == 0 and step.step_s > 0:
            self._costs.add(step.num_decode, step.num_warm, step.depth, step.step_s)
        if outcomes := self._outcomes(step):
            self._acceptance.observe(outcomes)
        if self._scout is not None:
            self._follow(self._scout, outcomes)
        if not self._is_cold:
            self._losing = self._losing + 1 if self._gain(step.num_decode) < 1 else 0

    def _outcomes(self, step: ObservedStep) -> list[tuple[int, int]]:
        """Outcomes in which drafts that the plan wanted and nobody made count as rejected: they bring as little."""
        if step.depth == 0:
            return []
        outcomes = [(step.depth, num_accepted) for _, num_accepted in step.outcomes]
        num_missing = 0 if self._has_kv else step.num_warm - len(outcomes)
        return outcomes + [(step.depth, 0)] * num_missing

    def _follow(self, scout: _Scout, outcomes: list[tuple[int, int]]) -> None:
        scout.age += 1
        scout.num_outcomes += len(outcomes)
        scout.num_accepted += sum(num_accepted for _, num_accepted in outcomes)
        if not scout.has_told:
            return
        if scout.has_hope and self._acceptance.expected(1) > self._given_up_at + RETURN_RISE:
            self._costs.forget_warm()
            self._leave_cold()
        elif scout.has_hope and self._gain(self._num_decode) > RETURN_GAIN:
            self._leave_cold()
        else:
            self._scout = None
            self._drops_scout = True
            self._since_turn = 0

    def _leave_cold(self) -> None:
        self._is_cold = False
        self._has_returned = True
        self._scout = None
        self._losing = self._since_turn = 0
