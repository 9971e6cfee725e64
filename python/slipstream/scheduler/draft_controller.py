"""How many drafts the next step verifies, and whether drafting is worth keeping draft KV for.

    choose()       the depth with the most expected tokens per second, by measured step costs and acceptance
    goes_cold()    drafting has not paid for a while: drop draft KV, so that it costs nothing
    admits_warm()  while cold, a scout now and then: one warm sequence whose acceptance decides whether drafting returns

Whatever is tried on suspicion is paid from a TimeAccount: what speculation has won, and a hundredth of all time.
"""

from dataclasses import dataclass

from slipstream.config.drafting import DraftShape
from slipstream.scheduler.draft_account import TimeAccount
from slipstream.scheduler.draft_best import BestDepth
from slipstream.scheduler.draft_probe import Probe
from slipstream.scheduler.draft_rates import DraftRates

RETURN_GAIN = 1.05  # over plain decoding, to keep draft KV again
LOSING_STEPS = 32  # in a row without hope of a gain, until running slots go cold
LOSING_STEPS_IN_DEBT = 8  # the same, when earlier losses have not been made good
WASTING_STEPS = 256  # in a row without a gain, though there would be one if all slots were warm
PROBE_PAUSE_STEPS = 16
SCOUT_PATIENCE_STEPS = 256  # for a scout to begin decoding


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


class DraftController:
    """Pure decisions from observed steps, which lag plans by a few steps. Not adaptive: always the full depth.

    `has_kv` False (n-gram): every slot is warm at no cost, so none goes cold.
    """

    def __init__(self, shape: DraftShape, adaptive: bool, has_kv: bool) -> None:
        self._max_depth = shape.depth
        self._adaptive = adaptive
        self._has_kv = has_kv
        self._depth = shape.depth
        self._rates = DraftRates(shape.depth, has_kv)
        self._best = BestDepth(self._rates)
        self._account = TimeAccount()
        self._probe: Probe | None = None
        self._since_probe = 0  # steps, as all below
        self._losing = 0
        self._wasting = 0
        self._is_cold = False  # new sequences are cold but for scouts
        self._scout_age: int | None = None  # since a scout was admitted
        self._drops_scout = False
        self._num_decode = 0  # of the last step observed
        self._num_admitted = 0  # since then

    @property
    def depth(self) -> int:
        """Of the most recent choice."""
        return self._depth

    # ---- decisions

    def choose(self, num_decode: int, num_warm: int) -> int:
        """Depth of the step being planned; 0: plain decoding."""
        if num_decode == 0:
            return 0
        if num_warm == 0:
            self._depth = 0
        elif not self._adaptive:
            self._depth = self._max_depth
        else:
            self._depth = self._choose(num_decode, num_warm)
        return self._depth

    def admits_warm(self) -> bool:
        """Whether a sequence admitted now is to keep draft KV. Asked once for each admission."""
        self._num_admitted += 1
        if not self._is_cold:
            return True
        if self._scout_age is not None:
            return False
        if not self._account.owes_parole and self._promises_gain(self._num_decode + self._num_admitted):
            self._leave_cold()
            return True
        if self._account.may_spend:
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
        if self._probe is not None or not self._has_lost:
            return False
        self._is_cold = True
        return True

    def _choose(self, num_decode: int, num_warm: int) -> int:
        if self._probe is None:
            depth = self._best.choose(num_decode, num_warm, may_look=self._account.may_spend)
            self._count_losses(num_decode, num_warm)
            if not self._may_probe:
                return depth
            self._rates.acceptance.doubt()
            self._probe = Probe(num_warm)
        return 1 if self._probe.drafts() else 0

    @property
    def _may_probe(self) -> bool:
        """A scout is a probe already paid for."""
        if self._is_cold:
            return self._scout_age is not None
        is_time = min(self._since_probe, self._best.age) >= PROBE_PAUSE_STEPS
        return self._best.depth == 0 and is_time and self._account.may_spend

    @property
    def _has_lost(self) -> bool:
        patience = LOSING_STEPS if self._account.has_credit else LOSING_STEPS_IN_DEBT
        return self._losing >= patience or self._wasting >= WASTING_STEPS or self._account.is_bankrupt

    def _count_losses(self, num_decode: int, num_warm: int) -> None:
        gain = self._rates.gain(num_decode, num_warm, self._best.depth)
        if gain is None:
            return
        if gain > 1:
            self._wasting = self._losing = 0
            return
        best_gain = self._rates.best_gain(num_decode)
        self._wasting += 1
        self._losing = self._losing + 1 if best_gain is not None and best_gain < 1 else 0

    def _promises_gain(self, num_decode: int) -> bool:
        """Whether it is worth returning from the cold, also to find out at a batch size never seen."""
        gain = self._rates.best_gain(num_decode)
        return gain is None or gain > RETURN_GAIN

    # ---- what steps tell

    def observe(self, step: ObservedStep) -> None:
        """A step has returned."""
        if not self._adaptive:
            return
        self._num_decode, self._num_admitted = step.num_decode, 0
        self._since_probe += 1
        self._account.earn(step.step_s)
        self._observe_time(step)
        outcomes = self._outcomes(step)
        if outcomes:
            self._rates.acceptance.observe(outcomes)
        if self._probe is not None and step.num_decode:
            self._probe.observe(outcomes)
            if self._probe.is_over:
                self._end_probe(self._probe)
        if step.num_warm:
            num_accepted = sum(accepted for _, accepted in step.outcomes)
            if won := self._rates.won(step.num_decode, step.num_warm, step.depth, num_accepted):
                self._account.book(*won)
        if self._scout_age is not None:
            self._scout_age += 1
            if self._scout_age > SCOUT_PATIENCE_STEPS and self._probe is None:
                self._end_scouting()

    def _observe_time(self, step: ObservedStep) -> None:
        is_measure = step.num_decode > 0 and step.num_prompt_tokens == 0 and step.step_s > 0
        has_changed = is_measure and self._rates.costs.add(step.num_decode, step.num_warm, step.depth, step.step_s)
        self._best.observe(is_measure, has_changed)

    def _outcomes(self, step: ObservedStep) -> list[tuple[int, int]]:
        """Outcomes in which drafts that the plan wanted and nobody made count as rejected: they bring as little."""
        if step.depth == 0:
            return []
        outcomes = [(step.depth, num_accepted) for _, num_accepted in step.outcomes]
        num_missing = 0 if self._has_kv else step.num_warm - len(outcomes)
        return outcomes + [(step.depth, 0)] * num_missing

    def _end_probe(self, probe: Probe) -> None:
        self._probe = None
        self._since_probe = 0
        if not self._is_cold:
            return
        if probe.has_hope and self._promises_gain(self._num_decode):
            self._leave_cold()
        else:
            self._end_scouting()

    # ---- warm and cold

    def _leave_cold(self) -> None:
        self._is_cold = False
        self._scout_age = None
        self._losing = self._wasting = 0
        self._account.start_parole()

    def _end_scouting(self) -> None:
        self._scout_age = None
        self._drops_scout = True
