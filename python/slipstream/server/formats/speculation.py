"""What speculation did for an answer, in SGLang's form and in vLLM's.

A verify step is a forward pass of the target that had at least one draft of the choice to judge; what it accepts, it
accepts beside the one token that it gives anyway.
"""

from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

from slipstream.messages.sampling import DraftStats
from slipstream.server.formats.collect import PromptAnswer


def acceptance_length(num_verify: int, num_accepted: int) -> float | None:
    """Mean tokens of a verify step, 1 + accepted / steps; None without a step.

    >>> acceptance_length(4, 10)
    3.5
    """
    return 1 + num_accepted / num_verify if num_verify else None


def acceptance_rate(num_drafted: int, num_accepted: int) -> float | None:
    """Share of the drafts that were accepted, those of all branches of a tree; None without drafts."""
    return num_accepted / num_drafted if num_drafted else None


def native_drafts(stats: DraftStats | None) -> dict[str, Any]:
    """The fields in `meta_info` of a choice; none where nothing was drafted."""
    if stats is None or not stats.num_verify:
        return {}
    return {
        "spec_accept_length": acceptance_length(stats.num_verify, stats.num_accepted),
        "spec_accept_rate": acceptance_rate(stats.num_draft_tokens, stats.num_accepted),
        "spec_verify_ct": stats.num_verify,
        "spec_num_correct_drafts": stats.num_accepted,
        "spec_num_proposed_drafts": stats.num_draft_tokens,
        "spec_correct_drafts_histogram": list(stats.accepted),
    }


def openai_metrics(prompts: Iterable[PromptAnswer]) -> dict[str, Any]:
    """The field `metrics` of an OpenAI answer, over all prompts and choices; none where nothing was drafted."""
    stats = _total(choice.drafts for prompt in prompts for choice in prompt.choices)
    if not stats.num_verify:
        return {}
    return {
        "metrics": {
            "speculative_decoding": {
                "mean_acceptance_length": acceptance_length(stats.num_verify, stats.num_accepted),
                "draft_acceptance_rate": acceptance_rate(stats.num_draft_tokens, stats.num_accepted),
                "acceptance_histogram": list(stats.accepted),
                "num_spec_steps": stats.num_verify,
                "num_draft_tokens": stats.num_draft_tokens,
                "num_accepted_draft_tokens": stats.num_accepted,
            }
        }
    }


def _total(parts: Iterable[DraftStats | None]) -> DraftStats:
    known = [part for part in parts if part is not None]
    histograms = zip_longest(*(part.accepted for part in known), fillvalue=0)
    return DraftStats(sum(part.num_draft_tokens for part in known), tuple(map(sum, histograms)))
