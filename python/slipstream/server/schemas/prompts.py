"""Prompts of the routes that take text or token ids, one or many."""

from typing import Any

from slipstream.errors import RequestError
from slipstream.messages.to_tokenizer import TextPrompt, TokenPrompt
from slipstream.server.error_body import shown
from slipstream.server.limits import MAX_PROMPTS, check_token_ids

PROMPT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    ]
}


def text_prompts(value: Any, param: str) -> list[TextPrompt]:
    """A list of strings as prompts. Raises RequestError for anything else in it."""
    _check_count(value, param)
    for index, text in enumerate(value):
        if not isinstance(text, str):
            raise RequestError(
                f"{param}.{index} must be a string like the others, got {shown(text)}", param=f"{param}.{index}"
            )
    return [TextPrompt(text) for text in value]


def token_prompt(value: Any, vocab_size: int, param: str) -> TokenPrompt:
    """A list of token ids as one prompt."""
    if not isinstance(value, list) or not value:
        raise RequestError(f"{param} must be a list of one or more token ids, got {shown(value)}", param=param)
    if set(map(type, value)) != {int}:
        index, wrong = next((index, item) for index, item in enumerate(value) if type(item) is not int)
        raise RequestError(f"{param}.{index} must be a token id, got {shown(wrong)}", param=f"{param}.{index}")
    return TokenPrompt(check_token_ids(value, vocab_size, param))


def token_prompts(value: list[Any], vocab_size: int, param: str) -> list[TokenPrompt]:
    """A list of lists of token ids."""
    _check_count(value, param)
    return [token_prompt(ids, vocab_size, f"{param}.{index}") for index, ids in enumerate(value)]


def any_prompts(value: Any, vocab_size: int, param: str) -> list[TextPrompt | TokenPrompt]:
    """A string, a list of strings, token ids, or a list of lists of token ids."""
    if isinstance(value, str):
        return [TextPrompt(value)]
    if not isinstance(value, list) or not value:
        raise RequestError(
            f"{param} must be a string, a list of strings, a list of token ids or a list of such lists, "
            f"got {shown(value)}",
            param=param,
        )
    if isinstance(value[0], str):
        return [*text_prompts(value, param)]
    if isinstance(value[0], list):
        return [*token_prompts(value, vocab_size, param)]
    return [token_prompt(value, vocab_size, param)]


def _check_count(value: list[Any], param: str) -> None:
    if not 1 <= len(value) <= MAX_PROMPTS:
        raise RequestError(f"{param} holds {len(value)} prompts; it must be 1 to {MAX_PROMPTS}", param=param)
