"""Who may have drafts, and how many: the scheduler's side of speculation."""

from slipstream.config.drafting import DraftShape
from slipstream.config.processes import SchedulerDrafts
from slipstream.messages.to_scheduler import SlotResult
from slipstream.scheduler.draft_controller import DraftController, ObservedStep
from slipstream.scheduler.plan_builder import Row, StepInFlight
from slipstream.scheduler.sequence import Sequence

_NO_DRAFTS = DraftShape(depth=0, topk=1, num_nodes=0)


class Drafting:
    """Answers for `drafts`; with None nobody ever gets a draft. `controller` replaces the one that drafts asks for."""

    def __init__(self, drafts: SchedulerDrafts | None, controller: DraftController | None = None) -> None:
        self.shape = drafts.shape if drafts is not None else _NO_DRAFTS
        self.is_chain = self.shape.is_chain
        self.rows = [self.shape.rows(depth) for depth in range(self.shape.depth + 1)]  # DraftShape.rows() by depth
        self.successor_depth = drafts.successor_depth if drafts is not None else 0
        self.has_kv = drafts is not None and drafts.has_kv
        self._controller = controller
        if drafts is not None and controller is None:
            self._controller = DraftController(drafts.shape, drafts.adaptive, drafts.has_kv)

    @property
    def depth(self) -> int | None:
        """Longest path of drafts in the steps of now; None: served without drafts."""
        return self._controller.depth if self._controller is not None else None

    def may_be_warm(self, sequence: Sequence) -> bool:
        """Whether the draft could follow a sequence that is about to get a slot."""
        return self.has_kv and sequence.sampling.max_draft_tokens != 0

    def admits_warm(self) -> bool:
        """Whether it is to follow a sequence that could be followed and gets a slot now."""
        return self._controller is not None and self._controller.admits_warm()

    def goes_cold(self) -> bool:
        """Whether the draft is to stop following all that it follows now."""
        return self._controller is not None and self._controller.goes_cold()

    def may_draft(self, sequence: Sequence) -> bool:
        """Whether a sequence that decodes can have drafts at all: a draft with KV has it of warm ones only."""
        if self._controller is None or sequence.sampling.max_draft_tokens == 0:
            return False
        return sequence.warm or not self.has_kv

    def choose(self, num_decode: int, num_warm: int) -> int:
        """Longest path of drafts of a step in which `num_warm` of `num_decode` sequences may have some."""
        return self._controller.choose(num_decode, num_warm) if self._controller is not None and num_decode else 0

    def observe(self, step: StepInFlight, step_s: float, outcomes: list[tuple[int, int]]) -> None:
        """A step has returned; `outcomes` are those of its verify steps that count."""
        if self._controller is None:
            return
        self._controller.observe(
            ObservedStep(
                num_decode=step.num_decode,
                num_warm=step.num_warm,
                depth=step.depth,
                num_prompt_tokens=step.num_prompt_tokens,
                step_s=step_s,
                outcomes=outcomes,
            )
        )


def verify_outcome(row: Row, result: SlotResult) -> tuple[int, int] | None:
    """(drafts on the longest path, how many were accepted, before anything is trimmed); None: nothing was verified."""
    if not result.num_drafts or not result.token_ids:
        return None
    return min(row.depth, result.num_drafts), len(result.token_ids) - 1
