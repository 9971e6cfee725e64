"""Chat requests -> ids by mistral-common, which speaks every version of Mistral's own format."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.chunk import TextChunk
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from slipstream.errors import CheckpointError, RequestError
from slipstream.tokenizer.chat import ChatMessage, read_chat

MESSAGE_TYPES = {"system": SystemMessage, "user": UserMessage, "assistant": AssistantMessage}
LOAD_ERRORS = (
    MistralCommonException,
    pydantic.ValidationError,
    ValueError,
    KeyError,
    TypeError,
    AssertionError,
    OSError,
    RuntimeError,
)  # what mistral-common and sentencepiece raise for a broken file


def load_mistral(path: str) -> MistralTokenizer[Any, Any, Any, Any, Any]:
    """mistral-common's tokenizer of a tekken*.json or *.model[.vN] file; raises CheckpointError."""
    if not Path(path).is_file():
        raise CheckpointError(path, ["the tokenizer file does not exist; name another one with --tokenizer-path"])
    try:
        return MistralTokenizer.from_file(path, mode=ValidationMode.serving)
    except LOAD_ERRORS as error:
        raise CheckpointError(path, [f"mistral-common cannot read this tokenizer: {reason(error)}"]) from error


def encode_chat(
    tokenizer: MistralTokenizer[Any, Any, Any, Any, Any], messages: Sequence[Mapping[str, Any]]
) -> list[int]:
    """Ids up to the point where the assistant speaks; raises RequestError for what the format refuses."""
    chat = read_chat(messages)
    for i, message in enumerate(chat):
        if message.role == "assistant" and not any(message.parts):
            raise RequestError(f"messages[{i}] is an assistant message without text: leave it out", param="messages")
    try:
        request = ChatCompletionRequest(model="", messages=[_to_mistral(message) for message in chat])
        tokens: list[int] = tokenizer.encode_chat_completion(request).tokens
    except (MistralCommonException, pydantic.ValidationError, ValueError) as error:
        raise RequestError(
            f"the model's chat format refuses these messages: {reason(error)}", param="messages"
        ) from error
    return tokens


def _to_mistral(message: ChatMessage) -> SystemMessage | UserMessage | AssistantMessage:
    content = message.parts[0] if len(message.parts) == 1 else [TextChunk(text=part) for part in message.parts]
    more = {"prefix": True} if message.prefix else {}
    made: SystemMessage | UserMessage | AssistantMessage = MESSAGE_TYPES[message.role](content=content, **more)
    return made


def reason(error: Exception) -> str:
    """The error in one sentence: pydantic's first complaint, the library's own message, or what str() gives."""
    if isinstance(error, pydantic.ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    text = error.message if isinstance(error, MistralCommonException) else str(error)
    return " ".join(text.split()) or type(error).__name__
