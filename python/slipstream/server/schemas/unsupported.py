"""Fields that clients send and that Slipstream knows but does not support, in one table.

At a value that asks for nothing they pass; at any other they are refused by name. Nothing is accepted and ignored,
except hints and labels (user, metadata, ...), which ask for nothing at all. null always passes.
"""

from dataclasses import dataclass
from typing import Any

from slipstream.errors import RequestError
from slipstream.server.error_body import shown


@dataclass(frozen=True)
class Unsupported:
    """`no_ops` are the values that ask for nothing; None stands for every value."""

    no_ops: tuple[Any, ...] | None
    reason: str = "it would have no effect"


_LABEL = Unsupported(None)
_TOOLS = "tool calls cannot be made yet"
_GRAMMAR = "output cannot be constrained yet"
_MEDIA = "only text can be written, and only text and images read"
_REASONING = "reasoning cannot be steered yet"
_TEMPLATE = "the chat template is the checkpoint's own"
_RAW_TEXT = "the answer's text is what the stop rules leave of it"
_INTERNAL = "it belongs to features of other servers"

UNSUPPORTED: dict[str, Unsupported] = {
    # labels and hints
    "user": _LABEL,
    "metadata": _LABEL,
    "safety_identifier": _LABEL,
    "prompt_cache_key": _LABEL,
    "parallel_tool_calls": _LABEL,
    "log_metrics": _LABEL,
    "separate_reasoning": _LABEL,
    "stream_reasoning": _LABEL,
    "include_reasoning": _LABEL,
    # OpenAI
    "store": Unsupported((False,), "answers are not stored"),
    "service_tier": Unsupported(("auto", "default"), "there is one tier"),
    "response_format": Unsupported(({"type": "text"},), _GRAMMAR),
    "tools": Unsupported(([],), _TOOLS),
    "tool_choice": Unsupported(("none", "auto"), _TOOLS),
    "functions": Unsupported(([],), _TOOLS),
    "function_call": Unsupported(("none", "auto"), _TOOLS),
    "reasoning_effort": Unsupported((), _REASONING),
    "verbosity": Unsupported((), _REASONING),
    "modalities": Unsupported((["text"],), _MEDIA),
    "audio": Unsupported((), _MEDIA),
    "prediction": Unsupported((), "predicted outputs cannot be used yet"),
    "suffix": Unsupported(("",), "text cannot be inserted, only continued"),
    "web_search_options": Unsupported((), "there is no web search"),
    "prompt_cache_retention": Unsupported((), "prompts stay cached as long as memory allows"),
    "moderation": Unsupported((), "there is no moderation"),
    # SGLang
    "return_logprob": Unsupported((False,), "ask with logprobs, or use /generate"),
    "top_logprobs_num": Unsupported((0,), "ask with top_logprobs, or use /generate"),
    "logprob_start_len": Unsupported((-1,), "use /generate"),
    "token_ids_logprob": Unsupported(([],), "logprobs can be had for the likeliest tokens only"),
    "return_hidden_states": Unsupported((False,), "hidden states stay on the device"),
    "return_routed_experts": Unsupported((False,), _INTERNAL),
    "lora_path": Unsupported((), "adapters cannot be loaded yet"),
    "lora_id": Unsupported((), "adapters cannot be loaded yet"),
    "image_data": Unsupported(([],), "images come in messages, with /v1/chat/completions"),
    "video_data": Unsupported(([],), _MEDIA),
    "audio_data": Unsupported(([],), _MEDIA),
    "input_embeds": Unsupported((), "tensors are not accepted from clients"),
    "regex": Unsupported((), _GRAMMAR),
    "ebnf": Unsupported((), _GRAMMAR),
    "json_schema": Unsupported((), _GRAMMAR),
    "structural_tag": Unsupported((), _GRAMMAR),
    "no_stop_trim": Unsupported((False,), _RAW_TEXT),
    "stop_regex": Unsupported(([], ""), "stop strings are compared as they are"),
    "spaces_between_special_tokens": Unsupported((True,), "the tokenizer has no such spaces"),
    "custom_logit_processor": Unsupported((), "no code is accepted from clients"),
    "custom_params": Unsupported(({},), "no code is accepted from clients"),
    "session_params": Unsupported(({},), _INTERNAL),
    "session_id": Unsupported((), _INTERNAL),
    "extra_key": Unsupported((), "the prefix cache is shared by all requests"),
    "cache_salt": Unsupported((), "the prefix cache is shared by all requests"),
    "priority": Unsupported((0,), "requests run in the order in which they come"),
    "stream_interval": Unsupported((1,), "text is streamed as it comes"),
    "background": Unsupported((False,), _INTERNAL),
    "require_reasoning": Unsupported((False,), _REASONING),
    "bootstrap_host": Unsupported((), _INTERNAL),
    "bootstrap_port": Unsupported((), _INTERNAL),
    "bootstrap_room": Unsupported((), _INTERNAL),
    "data_parallel_rank": Unsupported((), _INTERNAL),
    "continue_final_message": Unsupported((False,), _TEMPLATE),
    # vLLM and others
    "add_generation_prompt": Unsupported((True,), _TEMPLATE),
    "add_special_tokens": Unsupported((True,), "to leave out the first token, send token ids"),
    "chat_template": Unsupported((), _TEMPLATE),
    "chat_template_kwargs": Unsupported(({},), _TEMPLATE),
    "documents": Unsupported(([],), _TEMPLATE),
    "mm_processor_kwargs": Unsupported(({},), _MEDIA),
    "safe_prompt": Unsupported((False,), _TEMPLATE),
    "prompt_mode": Unsupported((), _REASONING),
    "use_beam_search": Unsupported((False,), "there is no beam search"),
    "length_penalty": Unsupported((1, 1.0), "there is no beam search"),
    "early_stopping": Unsupported((False,), "there is no beam search"),
    "include_stop_str_in_output": Unsupported((False,), _RAW_TEXT),
    "truncate_prompt_tokens": Unsupported((), "prompts are never cut"),
    "prompt_logprobs": Unsupported((), "use echo with logprobs, or /generate"),
    "allowed_token_ids": Unsupported((), _GRAMMAR),
    "bad_words": Unsupported(([],), _GRAMMAR),
    "guided_json": Unsupported((), _GRAMMAR),
    "guided_regex": Unsupported((), _GRAMMAR),
    "guided_choice": Unsupported((), _GRAMMAR),
    "guided_grammar": Unsupported((), _GRAMMAR),
    "structured_outputs": Unsupported((), _GRAMMAR),
    "return_tokens_as_token_ids": Unsupported((False,), "use /generate"),
    "return_token_ids": Unsupported((False,), "use /generate"),
    "logits_processors": Unsupported(([],), "no code is accepted from clients"),
    "kv_transfer_params": Unsupported((), _INTERNAL),
}


def check_unsupported(name: str, value: Any, path: str) -> None:
    """Raise RequestError when a field of the table asks for something. `path` is what the client calls it."""
    entry = UNSUPPORTED[name]
    if value is None or entry.no_ops is None or any(_same(value, no_op) for no_op in entry.no_ops):
        return
    allowed = ", ".join(["null", *(repr(no_op) for no_op in entry.no_ops)])
    raise RequestError(
        f"{path} is not supported yet: {entry.reason}. Leave it out (it may be {allowed}; got {shown(value)})",
        param=path,
        code="unsupported_parameter",
    )


def _same(value: Any, no_op: Any) -> bool:
    """Equal, and of one kind: True is not 1."""
    return isinstance(value, bool) == isinstance(no_op, bool) and bool(value == no_op)
