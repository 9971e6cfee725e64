"""Chat messages in OpenAI's form -> ChatMessage: roles and text, with everything else refused by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slipstream.errors import RequestError

ROLES = ("system", "user", "assistant")
ROLE_ALIASES = {"developer": "system"}  # OpenAI's newer name for the same thing


@dataclass(frozen=True)
class ChatMessage:
    """One message. `parts` are its texts in order; `prefix` marks an answer that the model shall continue."""

    role: str
    parts: tuple[str, ...]
    prefix: bool = False


def read_chat(messages: Sequence[Mapping[str, Any]]) -> list[ChatMessage]:
    """The conversation as plain data; its last message is the user's, or an assistant's with `prefix`.

    Raises RequestError naming the message and the field.
    """
    if not messages:
        raise RequestError("messages is empty: a chat needs at least one message", param="messages")
    chat = [_read_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    for i, message in enumerate(chat[:-1]):
        if message.prefix:
            raise RequestError(
                f"messages[{i}] has prefix: true, but only the last message can be continued", param="messages"
            )
    last = chat[-1]
    if last.role == "assistant" and not last.prefix:
        raise RequestError(
            "the last message is the assistant's own: end with a user message, or set prefix: true on it to have it "
            "continued",
            param="messages",
        )
    if last.role == "system":
        raise RequestError("the last message has the role system: end with a user message", param="messages")
    return chat


def _read_message(message: Mapping[str, Any], place: str) -> ChatMessage:
    role = ROLE_ALIASES.get(message.get("role", ""), message.get("role", ""))
    if role == "tool" or message.get("tool_calls") or message.get("function_call"):
        raise RequestError(f"{place} belongs to a tool call: tool calls are not supported", param="messages")
    if role not in ROLES:
        raise RequestError(f"{place} has the role {role!r}; it must be one of: {', '.join(ROLES)}", param="messages")
    prefix = bool(message.get("prefix"))
    if prefix and role != "assistant":
        raise RequestError(f"{place} has prefix: true, which is for assistant messages", param="messages")
    return ChatMessage(role, _read_content(message.get("content"), f"{place}.content"), prefix)


def _read_content(content: Any, place: str) -> tuple[str, ...]:
    if isinstance(content, str):
        return (content,)
    if not isinstance(content, list) or not content:
        raise RequestError(f"{place} must be a text or a list of text parts", param="messages")
    return tuple(_read_part(part, f"{place}[{i}]") for i, part in enumerate(content))


def _read_part(part: Any, place: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind != "text":
        raise RequestError(
            f'{place} has the type {kind!r}: this model takes parts of type "text" only', param="messages"
        )
    if not isinstance(part.get("text"), str):
        raise RequestError(f"{place}.text must be a text", param="messages")
    return str(part["text"])
