"""Chat messages as the server has checked them -> ChatMessage, and the rules on their order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slipstream.errors import RequestError


@dataclass(frozen=True)
class ChatMessage:
    """One message. `parts` are its texts in order; `prefix` marks an answer that the model shall continue."""

    role: str  # "system" | "user" | "assistant"
    parts: tuple[str, ...]
    prefix: bool = False


def read_chat(messages: Sequence[Mapping[str, Any]]) -> list[ChatMessage]:
    """The conversation as plain data; its last message is the user's, or an assistant's with `prefix`.

    `messages` are those of a ChatPrompt. Raises RequestError naming the message.
    """
    if not messages:
        raise RequestError("messages is empty: a chat needs at least one message", param="messages")
    chat = [_read_message(message) for message in messages]
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


def _read_message(message: Mapping[str, Any]) -> ChatMessage:
    content = message["content"]
    parts = (content,) if isinstance(content, str) else tuple(part["text"] for part in content)
    return ChatMessage(message["role"], parts, message.get("prefix", False))
