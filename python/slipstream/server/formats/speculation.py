"""What speculation did for an answer, in SGLang's form and in vLLM's.

A verify step is a forward pass of the target that had at least one draft of the choice to judge; what it accepts, it
accepts beside the one token that it gives anyway.
"""

from collections.abc import Iterable
from typing import Any

from slipstream.messages.sampling import DraftStats
from slipstream.server.formats.collect import PromptAnswer


def native_drafts(stats: DraftStats | None) -> dict[str, Any]:
    """The fields in `meta_info` of a choice; none where nothing was drafted."""
    if stats is None or not stats.num_verify:
        return {}
    return {
        "spec_accept_length": stats.acceptance_length,
        "spec_accept_rate": stats.acceptance_rate,
        "spec_verify_ct": stats.num_verify,
        "spec_num_correct_drafts": stats.num_accepted,
        "spec_num_proposed_drafts": stats.num_draft_tokens,
        "spec_correct_drafts_histogram": list(stats.accepted),
    }


def openai_metrics(prompts: Iterable[PromptAnswer]) -> dict[str, Any]:
    """The field `metrics` of an OpenAI answer, over all prompts and choices; none where nothing was drafted."""
    drafts = (choice.drafts for prompt in prompts for choice in prompt.choices)
    stats = DraftStats.total(each for each in drafts if each is not None)
    if not stats.num_verify:
        return {}
    return {
        "metrics": {
            "speculative_decoding": {
                "mean_acceptance_length": stats.acceptance_length,
                "draft_acceptance_rate": stats.acceptance_rate,
                "acceptance_histogram": list(stats.accepted),
                "num_spec_steps": stats.num_verify,
                "num_draft_tokens": stats.num_draft_tokens,
                "num_accepted_draft_tokens": stats.num_accepted,
            }
        }
    }
