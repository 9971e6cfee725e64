"""The account from which everything tried on suspicion is paid: seconds that speculation has won on plain decoding."""

TRIAL_SHARE = 0.01  # of all time, for trials
MAX_CREDIT_STEPS = 8.0  # in plain steps, as all below: gains of long ago do not pay for losses of today
MAX_DEBT_STEPS = 1.0  # and losses of long ago do not forbid trials today
PAROLE_DEBT_STEPS = 8.0  # the same on parole, where it means the end
PAROLE_CREDIT_STEPS = 2.0  # that end a parole well


class TimeAccount:
    """Earns a share of all time and what speculation wins, pays what it loses.

    On parole, which is after a return to drafting that has yet to prove right, debt may grow deeper: the next trial is
    then the further away the more was lost.
    """

    def __init__(self) -> None:
        self._balance_s = 0.0
        self._plain_s = 0.0  # of the last step booked
        self._is_on_parole = False

    @property
    def may_spend(self) -> bool:
        return self._balance_s >= 0

    @property
    def has_credit(self) -> bool:
        return self._balance_s > 0

    @property
    def owes_parole(self) -> bool:
        """What a parole lost has not been earned back: no other one yet."""
        return self._is_on_parole and self._balance_s < 0

    @property
    def is_bankrupt(self) -> bool:
        """A parole has failed."""
        return self._is_on_parole and self._balance_s <= -PAROLE_DEBT_STEPS * self._plain_s < 0

    def start_parole(self) -> None:
        self._is_on_parole = True

    def earn(self, step_s: float) -> None:
        """Any step, of `step_s` seconds."""
        self._balance_s += TRIAL_SHARE * step_s

    def book(self, won_s: float, plain_s: float) -> None:
        """A step with warm slots won `won_s` seconds on plain decoding, whose step takes `plain_s`."""
        max_debt = PAROLE_DEBT_STEPS if self._is_on_parole else MAX_DEBT_STEPS
        self._balance_s = min(max(self._balance_s + won_s, -max_debt * plain_s), MAX_CREDIT_STEPS * plain_s)
        self._plain_s = plain_s
        if self._balance_s > PAROLE_CREDIT_STEPS * plain_s:
            self._is_on_parole = False
