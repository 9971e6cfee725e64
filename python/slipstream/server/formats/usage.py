"""Token counts in OpenAI's form."""

from collections.abc import Iterable
from typing import Any

from slipstream.server.formats.collect import PromptAnswer


def usage(prompts: Iterable[PromptAnswer]) -> dict[str, Any]:
    """Counts over all prompts and choices; a prompt with several choices counts once."""
    prompts = list(prompts)
    prompt_tokens = sum(prompt.prompt_len for prompt in prompts)
    completion_tokens = sum(choice.num_generated for prompt in prompts for choice in prompt.choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(prompt.num_cached for prompt in prompts)},
    }
