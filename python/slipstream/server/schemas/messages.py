"""Checks of chat messages: roles, types of content, and everything in them that is not supported."""

from collections.abc import Sequence
from typing import Any

from slipstream.errors import RequestError
from slipstream.server.error_body import shown, unknown_field

ROLES = ("system", "developer", "user", "assistant", "tool")
KNOWN_FIELDS = ("role", "content", "prefix")
# Fields that answers of servers contain and that clients send back, with the values that mean nothing.
EMPTY_FIELDS: dict[str, tuple[Any, ...]] = {
    "name": (),
    "refusal": (),
    "audio": (),
    "annotations": ([],),
    "tool_calls": ([],),
    "function_call": (),
    "tool_call_id": (),
    "reasoning": ("",),
    "reasoning_content": ("",),
}
MEDIA_PARTS = ("image_url", "image", "input_image", "input_audio", "audio_url", "video_url", "file", "input_file")


def check_messages(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as ChatPrompt wants them: `role`, `content` as a string or a list of text parts, and `prefix: True` on
    an assistant message that the model shall continue (Mistral's own API has it; the tokenizer checks its place).

    The role "developer", OpenAI's newer name, becomes "system". Raises RequestError naming message and field.
    """
    return [_check_message(message, f"messages.{index}") for index, message in enumerate(messages)]


def _check_message(message: dict[str, Any], path: str) -> dict[str, Any]:
    role = message.get("role")
    if role not in ROLES:
        raise RequestError(f"{path}.role is {shown(role)}; it must be one of: {', '.join(ROLES)}", param=f"{path}.role")
    if role == "tool":
        raise RequestError(
            f"{path}.role 'tool' is not supported yet: tool calls cannot be made yet",
            param=f"{path}.role",
            code="unsupported_parameter",
        )
    for name, value in message.items():
        if name not in KNOWN_FIELDS:
            _check_extra(name, value, f"{path}.{name}")
    return {
        "role": "system" if role == "developer" else role,
        "content": _check_content(message.get("content"), f"{path}.content"),
        **_check_prefix(message.get("prefix"), role, f"{path}.prefix"),
    }


def _check_prefix(prefix: Any, role: str, path: str) -> dict[str, bool]:
    if prefix is None or prefix is False:
        return {}
    if prefix is not True:
        raise RequestError(f"{path} must be true or false, got {shown(prefix)}", param=path)
    if role != "assistant":
        raise RequestError(f"{path} is for messages of the role assistant", param=path)
    return {"prefix": True}


def _check_extra(name: str, value: Any, path: str) -> None:
    if name not in EMPTY_FIELDS:
        raise RequestError(
            unknown_field(path[:200], name, (*KNOWN_FIELDS, *EMPTY_FIELDS)), param=path[:200], code="unknown_field"
        )
    if value is not None and not any(type(value) is type(empty) and value == empty for empty in EMPTY_FIELDS[name]):
        raise RequestError(
            f"{path} is not supported yet; leave it out (got {shown(value)})", param=path, code="unsupported_parameter"
        )


def _check_content(content: Any, path: str) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise RequestError(f"{path} must be a string or a list of text parts, got {shown(content)}", param=path)
    parts = [_check_part(part, f"{path}.{index}") for index, part in enumerate(content)]
    return parts[0]["text"] if len(parts) == 1 else parts


def _check_part(part: Any, path: str) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in MEDIA_PARTS:
        raise RequestError(
            f"{path}: parts of type {kind!r} are not supported yet: only text can be read",
            param=path,
            code="unsupported_parameter",
        )
    if kind != "text" or not isinstance(part.get("text"), str):
        raise RequestError(f'{path} must be {{"type": "text", "text": "..."}}, got {shown(part)}', param=path)
    if unknown := part.keys() - {"type", "text"}:
        name = min(unknown)
        raise RequestError(
            unknown_field(f"{path}.{name}"[:200], name, ("type", "text")),
            param=f"{path}.{name}"[:200],
            code="unknown_field",
        )
    return {"type": "text", "text": part["text"]}
