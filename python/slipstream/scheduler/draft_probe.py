"""A probe: a few steps of one draft each while plain decoding is best, to see whether acceptance has returned."""

ENOUGH_OUTCOMES = 8  # verified slots that decide
HOPELESS_OUTCOMES = 4  # that many without one accepted draft decide too
MAX_LAG_STEPS = 4  # between a plan and its result, at most


class Probe:
    """Plans as many steps as `num_warm` slots need to tell, and counts what comes back."""

    def __init__(self, num_warm: int) -> None:
        self._steps_left = -(-ENOUGH_OUTCOMES // num_warm)
        self._max_age = self._steps_left + MAX_LAG_STEPS
        self._age = 0  # steps observed
        self._num_outcomes = 0
        self._num_accepted = 0

    def drafts(self) -> bool:
        """Whether the step being planned drafts for the probe. Asked once per plan."""
        if self._steps_left == 0 or self._is_hopeless:
            return False
        self._steps_left -= 1
        return True

    def observe(self, outcomes: list[tuple[int, int]]) -> None:
        self._age += 1
        self._num_outcomes += len(outcomes)
        self._num_accepted += sum(num_accepted for _, num_accepted in outcomes)

    @property
    def is_over(self) -> bool:
        """Everything that is to be expected has come back, also if slots ended early."""
        return self._is_hopeless or self._num_outcomes >= ENOUGH_OUTCOMES or self._age >= self._max_age

    @property
    def has_hope(self) -> bool:
        return self._num_outcomes >= HOPELESS_OUTCOMES and self._num_accepted > 0

    @property
    def _is_hopeless(self) -> bool:
        return self._num_outcomes >= HOPELESS_OUTCOMES and self._num_accepted == 0
