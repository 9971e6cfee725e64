"""What the scheduler counts, from the start of its process."""

import dataclasses
from dataclasses import dataclass


@dataclass
class Counters:
    """Field names are those of SchedulerStatus."""

    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    num_integrity_errors: int = 0

    def as_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)
