"""How many drafts the next step verifies, and whether drafting is worth keeping draft KV for.

    choose()       the depth with the most expected tokens per second, by measured step costs and acceptance
    goes_cold()    drafting has not paid for a while: drop draft KV, so that it costs nothing
    admits_warm()  while cold, a scout now and then: one warm sequence whose acceptance decides whether drafting returns

Everything tried on suspicion is paid from an account of time: speculation's gains, and a hundredth of all time.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from slipstream.config.drafting import DraftShape
from slipstream.scheduler.draft_acceptance import AcceptanceEstimator
from slipstream.scheduler.draft_costs import StepCosts

SWITCH_GAIN = 1.03  # a deeper depth must promise that much more; a shallower one no less
RETURN_GAIN = 1.05  # over plain decoding, to keep draft KV again
LOSING_STEPS = 32  # without hope of a gain, until running slots go cold
LOSING_STEPS_IN_DEBT = 8  # the same, when earlier losses have not been made good
WASTING_STEPS = 256  # without a gain, though there would be one if all slots were warm
TRIAL_SHARE = 0.01  # of all time, for trials
MAX_DEBT_STEPS, MAX_CREDIT_STEPS = 1.0, 20.0  # of the account, in plain steps
PAROLE_DEBT_STEPS = 8.0  # most debt after a return from the cold, which ends it, until it has proven itself
PAROLE_GAIN_STEPS = 2.0
PROBE_OUTCOMES = 8  # verified slots that decide whether acceptance has returned
MAX_LAG_STEPS = 4  # between a plan and what it did, at most
PROBE_PAUSE_STEPS = 16
HOPELESS_OUTCOMES = 4  # that many without one accepted draft end a probe
SCOUT_PATIENCE_STEPS = 256  # for a scout to begin decoding
FIRST_REVISIT_STEPS, REVISIT_STEPS = 64, 512  # between measurements of depths not chosen: doubles while the best stays
DOUBT_REVISIT_STEPS = 16  # when the machine has changed
REVISIT_SAMPLES = 3
BLIND_STEPS = 16  # in a row with prompts beside them, which tell no costs: then only depths already measured are chosen
BLIND_ACCEPTANCE = 0.2  # of the first draft, from which drafting is worth its cost when nothing is known of that
REVISIT_REACH = 0.85  # a depth is worth measuring again if at this share of its cost it would be the best


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
class _Trial:
    """Some steps at a depth that is not the best known."""

    depth: int
    steps_left: int
    is_probe: bool  # of acceptance while depth 0 is best; otherwise of the cost of `depth`
    num_outcomes: int = 0
    num_accepted: int = 0
    age: int = 0  # steps observed
    num_missed: int = 0  # steps without a warm slot

    @property
    def is_hopeless(self) -> bool:
        return self.is_probe and self.num_outcomes >= HOPELESS_OUTCOMES and self.num_accepted == 0


class DraftController:
    """Pure decisions from observed steps, which may lag plans by any number of steps. Not adaptive: always full depth.

    `has_kv` False (n-gram): every slot is warm at no cost, so none goes cold.
    """

    def __init__(self, shape: DraftShape, adaptive: bool, has_kv: bool) -> None:
        self._max_depth = shape.depth
        self._adaptive = adaptive
        self._has_kv = has_kv
        self._acceptance = AcceptanceEstimator(shape.depth)
        self._costs = StepCosts(shape.depth, has_refeed=has_kv)
        self._depth = shape.depth  # most recent choice
        self._best = shape.depth  # the choice when nothing is on trial
        self._trial: _Trial | None = None
        self._since_trial = 0  # or since the best depth changed, in steps
        self._revisit_steps = FIRST_REVISIT_STEPS
        self._num_revisits = self._revisited = 0
        self._since_measured = 0  # steps that told no cost
        self._account_s = 0.0
        self._debt_steps = 0.0  # the account's debt in plain steps
        self._num_decode = 0  # of the last plan
        self._num_admitted = 0  # since the last plan
        self._is_on_parole = False  # back from the cold, and not a gain yet
        self._is_cold = False  # new sequences are cold but for scouts
        self._scout_age: int | None = None  # steps since a scout was admitted
        self._drops_scout = False
        self._losing = 0  # steps in a row
        self._wasting = 0

    @property
    def depth(self) -> int:
        """Of the most recent choice."""
        return self._depth

    def choose(self, num_decode: int, num_warm: int) -> int:
        """Depth of the step being planned; 0: plain decoding."""
        self._num_decode = num_decode
        self._num_admitted = 0
        if num_decode == 0:
            return 0
        if num_warm == 0:
            self._miss_scout()
            self._depth = 0
        elif not self._adaptive:
            self._depth = self._max_depth
        else:
            if self._trial is None or not self._trial.is_probe:
                self._update_best(num_decode, num_warm)
                self._count_losses(num_decode, num_warm)
            self._depth = self._trial_depth(num_decode, num_warm)
        return self._depth

    def admits_warm(self) -> bool:
        """Whether a sequence admitted now is to keep draft KV. Asked once for each admission."""
        self._num_admitted += 1
        if not self._is_cold:
            return True
        if self._scout_age is not None:
            return False
        if self._promises_gain(self._num_decode + self._num_admitted):
            self._leave_cold()
            return True
        if self._account_s >= 0:
            self._scout_age = 0
            return True
        return False

    def goes_cold(self) -> bool:
        """Whether all running warm slots are to give up their draft KV now. Asked once per plan."""
        if not self._adaptive or not self._has_kv:
            return False
        if self._is_cold:
            drops, self._drops_scout = self._drops_scout, False
            return drops
        patience = LOSING_STEPS if self._account_s > 0 else LOSING_STEPS_IN_DEBT
        is_bankrupt = self._is_on_parole and self._debt_steps >= PAROLE_DEBT_STEPS
        if self._trial is None and (self._losing >= patience or self._wasting >= WASTING_STEPS or is_bankrupt):
            self._is_cold = True
            self._losing = self._wasting = 0
            return True
        return False

    def observe(self, step: ObservedStep) -> None:
        if not self._adaptive:
            return
        self._account_s += TRIAL_SHARE * step.step_s
        self._since_trial += 1
        self._since_measured = 0 if step.num_decode and not step.num_prompt_tokens else self._since_measured + 1
        if self._scout_age is not None:
            self._scout_age += 1
            if self._scout_age > SCOUT_PATIENCE_STEPS:
                self._end_scouting()
        if step.num_decode == 0:
            return
        if step.num_prompt_tokens == 0 and self._costs.add(step.num_decode, step.num_warm, step.depth, step.step_s):
            self._revisit_steps = DOUBT_REVISIT_STEPS
        if step.depth and step.num_warm:
            outcomes = self._outcomes(step)
            self._acceptance.observe(outcomes)
            if self._trial is not None and self._trial.is_probe:
                self._trial.num_outcomes += len(outcomes)
                self._trial.num_accepted += sum(accepted for _, accepted in outcomes)
        if self._trial is not None:
            self._trial.age += 1
        if step.num_warm:
            self._settle(step)

    # ---- what is best

    def _rate(self, num_decode: int, num_warm: int, depth: int) -> float:
        """Expected tokens per second; 0 before any step was measured."""
        cost = self._costs.estimate(num_decode, num_warm, depth)
        return (num_decode + num_warm * self._acceptance.expected(depth)) / cost if cost else 0.0

    def _gain(self, num_decode: int) -> float | None:
        """Best tokens per second with drafts in all slots, over plain decoding's; None while that is unknown."""
        size = self._costs.known_size(num_decode)
        depths = range(1, self._max_depth + 1)
        return None if size is None else max(self._gain_at(size, size, depth) for depth in depths)

    def _gain_at(self, num_decode: int, num_warm: int, depth: int) -> float:
        """Expected tokens per second over plain decoding's, at a size whose plain step is known."""
        plain = self._costs.plain(num_decode)
        assert plain is not None
        return self._rate(num_decode, num_warm, depth) * plain / num_decode

    def _update_best(self, num_decode: int, num_warm: int) -> None:
        depths: Iterable[int] = range(self._max_depth + 1)
        if self._is_blind:
            depths = [depth for depth in depths if self._costs.is_measured(num_decode, depth)]
            if len(depths) < 2:
                self._set_best(self._max_depth if self._acceptance.expected(1) > BLIND_ACCEPTANCE else 0)
                return
        rates = {depth: self._rate(num_decode, num_warm, depth) for depth in depths}
        best = max(rates, key=lambda depth: rates[depth])
        needed = SWITCH_GAIN if best > self._best else 1.0
        if rates[best] >= rates.get(self._best, 0.0) * needed:
            self._set_best(best)

    def _set_best(self, depth: int) -> None:
        if depth != self._best:
            self._best = depth
            self._since_trial = 0
            self._revisit_steps = FIRST_REVISIT_STEPS

    @property
    def _is_blind(self) -> bool:
        return self._since_measured > BLIND_STEPS

    def _count_losses(self, num_decode: int, num_warm: int) -> None:
        size = self._costs.known_size(num_decode)
        if size is None:
            return
        if self._gain_at(size, max(1, size * num_warm // num_decode), self._best) > 1:
            self._wasting = self._losing = 0
            return
        self._wasting += 1
        self._losing = self._losing + 1 if (self._gain(size) or 0.0) < 1 else 0

    # ---- trials

    def _trial_depth(self, num_decode: int, num_warm: int) -> int:
        if self._trial is None:
            self._trial = self._new_trial(num_decode, num_warm)
        trial = self._trial
        if trial is None:
            return self._best
        if trial.steps_left > 0 and not trial.is_hopeless:
            trial.steps_left -= 1
            return trial.depth
        if self._is_decided(trial):
            self._end_trial(num_decode)
        return self._best

    def _is_decided(self, trial: _Trial) -> bool:
        """A probe waits for its last results, which come within a few steps."""
        return (
            not trial.is_probe
            or trial.is_hopeless
            or trial.num_outcomes >= PROBE_OUTCOMES
            or trial.age >= 2 * PROBE_OUTCOMES + MAX_LAG_STEPS
        )

    def _new_trial(self, num_decode: int, num_warm: int) -> _Trial | None:
        if self._is_cold and self._scout_age is None:
            return None
        if self._is_cold or (self._best == 0 and self._may_try(PROBE_PAUSE_STEPS)):
            self._acceptance.doubt()
            return _Trial(1, -(-PROBE_OUTCOMES // num_warm), is_probe=True)
        if self._best and not self._is_blind and self._may_try(self._revisit_steps):
            self._revisit_steps = min(2 * self._revisit_steps, REVISIT_STEPS)
            depth = self._depth_to_revisit(num_decode, num_warm)
            self._since_trial = 0
            return None if depth is None else _Trial(depth, REVISIT_SAMPLES, is_probe=False)
        return None

    def _may_try(self, pause: int) -> bool:
        return self._since_trial >= pause and self._account_s >= 0

    def _depth_to_revisit(self, num_decode: int, num_warm: int) -> int | None:
        """The next depth, in turn; every other time one that might well turn out best."""
        self._num_revisits += 1
        least = self._rate(num_decode, num_warm, self._best) * REVISIT_REACH * (self._num_revisits % 2)
        count = self._max_depth + 1
        for depth in ((self._revisited + step) % count for step in range(1, count + 1)):
            if depth != self._best and self._rate(num_decode, num_warm, depth) > least:
                self._revisited = depth
                return depth
        return None

    def _end_trial(self, num_decode: int) -> None:
        assert self._trial is not None
        has_hope = self._trial.num_outcomes >= HOPELESS_OUTCOMES and self._trial.num_accepted > 0
        self._trial = None
        self._since_trial = 0
        if self._is_cold:
            if has_hope and self._promises_gain(num_decode):
                self._leave_cold()
            else:
                self._end_scouting()

    def _miss_scout(self) -> None:
        """The scout ended before its trial did; what it told counts, once its last results are in."""
        if self._is_cold and self._trial is not None:
            self._trial.num_missed += 1
            if self._trial.num_missed > MAX_LAG_STEPS:
                self._end_trial(self._num_decode)

    def _promises_gain(self, num_decode: int) -> bool:
        """Whether it is worth returning from the cold, also to find out at a batch size never seen."""
        gain = self._gain(num_decode)
        return gain is None or gain > RETURN_GAIN

    def _leave_cold(self) -> None:
        self._is_cold = False
        self._is_on_parole = True
        self._scout_age = None
        self._losing = self._wasting = 0

    def _end_scouting(self) -> None:
        self._scout_age = None
        self._trial = None
        self._drops_scout = True

    # ---- what steps tell

    def _outcomes(self, step: ObservedStep) -> list[tuple[int, int]]:
        """Outcomes in which drafts that the plan wanted and nobody made count as rejected: they bring nothing either."""
        outcomes = [(step.depth, accepted) for _, accepted in step.outcomes]
        if not self._has_kv:
            outcomes += [(step.depth, 0)] * (step.num_warm - len(outcomes))
        return outcomes

    def _settle(self, step: ObservedStep) -> None:
        """Book what the step gained on plain decoding. Its usual cost is booked, so that outliers leave no debt."""
        size = self._costs.known_size(step.num_decode)
        if size is None:
            return
        plain, gain = self._costs.plain(size), 1 + sum(accepted for _, accepted in step.outcomes) / step.num_decode
        cost = self._costs.estimate(size, max(1, size * step.num_warm // step.num_decode), step.depth)
        assert plain is not None and cost is not None
        self._account_s += plain * gain - cost
        max_debt = PAROLE_DEBT_STEPS if self._is_on_parole else MAX_DEBT_STEPS
        self._account_s = min(max(self._account_s, -max_debt * plain), MAX_CREDIT_STEPS * plain)
        self._debt_steps = -self._account_s / plain
        if self._debt_steps < -PAROLE_GAIN_STEPS:
            self._is_on_parole = False
