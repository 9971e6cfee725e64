"""How long a prompt and its answer may be, and the sampling parameters that follow from it."""

from collections.abc import Sequence

import msgspec

from slipstream.errors import RequestError
from slipstream.messages.sampling import SamplingParams
from slipstream.messages.to_tokenizer import Generate, SchedulerReady


def choice_params(message: Generate, eos_token_ids: Sequence[int], *, room: int) -> list[SamplingParams]:
    """One SamplingParams for each choice: its index, all stop ids, at most `room` new tokens.

    The prompt's logprobs are asked of choice 0 alone: they are the same for all.
    """
    sampling = message.sampling
    stop_token_ids = dict.fromkeys([*sampling.stop_token_ids, *(() if message.ignore_eos else eos_token_ids)])
    max_new_tokens = min(sampling.max_new_tokens, room)
    return [
        msgspec.structs.replace(
            sampling,
            choice=i,
            stop_token_ids=tuple(stop_token_ids),
            max_new_tokens=max_new_tokens,
            prompt_logprobs_from=sampling.prompt_logprobs_from if i == 0 else None,
        )
        for i in range(message.num_choices)
    ]


def check_prompt_len(prompt_len: int, ready: SchedulerReady, param: str) -> None:
    """Raise RequestError when no room is left for an answer; it names the prompt's tokens, the limit and the flag."""
    limit = ready.max_sequence_len
    if prompt_len < limit:
        return
    if limit < ready.num_pages * ready.page_size:
        where = "the context length; shorten the prompt, or raise --context-length if the model was made for more"
    else:
        where = "the whole KV pool; shorten the prompt, or start the server with a larger --max-total-tokens"
    raise RequestError(
        f"the prompt has {prompt_len} tokens, but prompt and answer together may have at most {limit}, which is "
        f"{where}",
        param=param,
        code="context_length_exceeded",
    )
