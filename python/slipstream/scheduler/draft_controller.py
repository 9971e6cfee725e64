"""How many drafts the next step verifies, and whether drafting is worth keeping draft KV for.

    choose()       the depth with the most expected tokens per second, by measured step costs and acceptance
    goes_cold()    drafting has not paid for a while: drop draft KV, so that it costs nothing
    admits_warm()  while cold, a scout now and then: one warm sequence whose acceptance decides whether drafting returns

Everything tried on suspicion is paid from an account of time: speculation's gains, and a hundredth of all time.
"""

from dataclasses import dataclass

from slipstream.config.drafting import DraftShape
from slipstream.scheduler.draft_acceptance import AcceptanceEstimator
from slipstream.scheduler.draft_costs import StepCosts

SWITCH_GAIN = 1.03  # another depth must promise that much more
RETURN_GAIN = 1.05  # over plain decoding, to keep draft KV again
LOSING_STEPS = 32  # without hope of a gain, until running slots go cold
WASTING_STEPS = 256  # without a gain, though there would be one if all slots were warm
TRIAL_SHARE = 0.01  # of all time, for trials
MAX_DEBT_STEPS, MAX_CREDIT_STEPS = 1.0, 20.0  # of the account, in plain steps
PROBE_OUTCOMES = 8  # verified slots that decide whether acceptance has returned
PROBE_PAUSE_STEPS = 16
HOPELESS_OUTCOMES = 4  # that many without one accepted draft end a probe
SCOUT_PATIENCE_STEPS = 256  # for a scout to begin decoding
REVISIT_STEPS = 256  # between measurements of depths not chosen
REVISIT_SAMPLES = 3
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
        self._costs = StepCosts(shape.depth)
        self._depth = shape.depth  # most recent choice
        self._best = shape.depth  # the choice when nothing is on trial
        self._trial: _Trial | None = None
        self._since_trial = 0
        self._account_s = 0.0
        self._num_decode = 0  # of the last plan
        self._num_admitted = 0  # since the last plan
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
        if num_warm == 0:
            self._depth = 0
        elif not self._adaptive:
            self._depth = self._max_depth
        else:
            self._update_best(num_decode, num_warm)
            self._count_losses(num_decode, num_warm)
            self._depth = self._trial_depth(num_decode, num_warm)
        return self._depth

    def admits_warm(self) -> bool:
        """Whether a sequence admitted now is to keep draft KV. Asked once for each admission."""
        self._num_admitted += 1
        if not self._is_cold:
            return True
        if self._gain(self._num_decode + self._num_admitted) > RETURN_GAIN:
            self._leave_cold()
            return True
        if self._scout_age is None and self._account_s >= 0:
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
        if self._trial is None and (self._losing >= LOSING_STEPS or self._wasting >= WASTING_STEPS):
            self._is_cold = True
            self._losing = self._wasting = 0
            return True
        return False

    def observe(self, step: ObservedStep) -> None:
        if not self._adaptive:
            return
        self._account_s += TRIAL_SHARE * step.step_s
        self._since_trial += 1
        if self._scout_age is not None:
            self._scout_age += 1
            if self._scout_age > SCOUT_PATIENCE_STEPS:
                self._end_scouting()
        if step.num_decode == 0:
            return
        if step.num_prompt_tokens == 0:
            self._costs.add(step.num_decode, step.num_warm, step.depth, step.step_s)
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

    def _plain_rate(self, num_decode: int) -> float:
        cost = self._costs.plain(num_decode)
        return num_decode / cost if cost else 0.0

    def _gain(self, num_decode: int) -> float:
        """Best tokens per second with drafts in all slots, over plain decoding's."""
        plain = self._plain_rate(num_decode)
        if not plain:
            return RETURN_GAIN + 1
        return max(self._rate(num_decode, num_decode, depth) for depth in range(1, self._max_depth + 1)) / plain

    def _update_best(self, num_decode: int, num_warm: int) -> None:
        rates = [self._rate(num_decode, num_warm, depth) for depth in range(self._max_depth + 1)]
        best = max(range(len(rates)), key=lambda depth: rates[depth])
        if rates[best] > rates[self._best] * SWITCH_GAIN:
            self._best = best

    def _count_losses(self, num_decode: int, num_warm: int) -> None:
        wasting = self._rate(num_decode, num_warm, self._best) < self._plain_rate(num_decode)
        self._wasting = self._wasting + 1 if wasting else 0
        self._losing = self._losing + 1 if wasting and self._gain(num_decode) < 1 else 0

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
        return not trial.is_probe or trial.is_hopeless or trial.num_outcomes >= PROBE_OUTCOMES or trial.age >= 20

    def _new_trial(self, num_decode: int, num_warm: int) -> _Trial | None:
        if self._is_cold and self._scout_age is None:
            return None
        if self._is_cold or (self._best == 0 and self._may_try(PROBE_PAUSE_STEPS)):
            self._acceptance.doubt()
            return _Trial(1, -(-PROBE_OUTCOMES // num_warm), is_probe=True)
        if self._best and self._may_try(REVISIT_STEPS):
            depth = self._depth_to_revisit(num_decode, num_warm)
            self._since_trial = 0
            return None if depth is None else _Trial(depth, REVISIT_SAMPLES, is_probe=False)
        return None

    def _may_try(self, pause: int) -> bool:
        return self._since_trial >= pause and self._account_s >= 0

    def _depth_to_revisit(self, num_decode: int, num_warm: int) -> int | None:
        """Of the depths that might turn out best, the next one below the last revisited."""
        best = self._rate(num_decode, num_warm, self._best)
        for depth in range(self._max_depth + 1):
            if depth != self._best and self._rate(num_decode, num_warm, depth) > best * REVISIT_REACH:
                return depth
        return None

    def _end_trial(self, num_decode: int) -> None:
        assert self._trial is not None
        self._trial = None
        self._since_trial = 0
        if self._is_cold:
            if self._gain(num_decode) > RETURN_GAIN:
                self._leave_cold()
            else:
                self._end_scouting()

    def _leave_cold(self) -> None:
        self._is_cold = False
        self._scout_age = None
        self._losing = self._wasting = 0

    def _end_scouting(self) -> None:
        self._scout_age = None
        self._trial = None
        self._drops_scout = True

    # ---- what steps tell

    def _outcomes(self, step: ObservedStep) -> list[tuple[int, int]]:
        """Outcomes in which drafts that the plan wanted and nobody made count as rejected: they bring nothing either."""
        outcomes = [(step.depth if accepted == depth else depth, accepted) for depth, accepted in step.outcomes]
        if not self._has_kv:
            outcomes += [(step.depth, 0)] * (step.num_warm - len(outcomes))
        return outcomes

    def _settle(self, step: ObservedStep) -> None:
        """Book what the step gained on plain decoding. Its usual cost is booked, so that outliers leave no debt."""
        plain = self._costs.plain(step.num_decode)
        cost = self._costs.estimate(step.num_decode, step.num_warm, step.depth)
        if plain is None or cost is None:
            return
        num_accepted = sum(accepted for _, accepted in step.outcomes)
        self._account_s += plain * (1 + num_accepted / step.num_decode) - cost
        self._account_s = min(max(self._account_s, -MAX_DEBT_STEPS * plain), MAX_CREDIT_STEPS * plain)
