"""POST /v1/chat/completions."""

import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from slipstream.messages.to_server import TextOutput
from slipstream.messages.to_tokenizer import ChatPrompt, Generate
from slipstream.server.body import read_object
from slipstream.server.context import Context
from slipstream.server.error_body import JSONResponse
from slipstream.server.formats.collect import ChoiceAnswer, Collector
from slipstream.server.formats.logprobs import chat_logprobs
from slipstream.server.formats.speculation import openai_metrics
from slipstream.server.formats.usage import usage
from slipstream.server.request_id import new_answer_id
from slipstream.server.routes.common import check_room, collect, load_images, start, stream
from slipstream.server.schemas.base import parse
from slipstream.server.schemas.chat import ChatRequest
from slipstream.server.schemas.openai import StreamOptions


async def chat_completions(request: Request, context: Context) -> Response:
    """Answer a conversation."""
    body = parse(ChatRequest, await read_object(request, context.config.max_request_bytes))
    body.check(context.config)
    answer_id = new_answer_id(request, "chatcmpl")
    messages = body.checked_messages(context.config)
    check_room(context, body.n)  # nothing is fetched for a request that is refused anyway
    messages = await load_images(request, context, messages)
    generate = to_generate(body, messages, context, answer_id)
    collector = Collector([generate])
    answer = ChatAnswer(body, collector, answer_id, context.config.served_model_name)
    generation = start(context, [generate], answer_id)
    if body.stream:
        return stream(context, generation, answer.chunks, answer.last_chunks)
    await collect(request, generation, collector)
    return JSONResponse(answer.whole())


def to_generate(body: ChatRequest, messages: list[dict[str, Any]], context: Context, rid: str) -> Generate:
    """What the tokenizer is asked. Without a maximum the answer may fill the context."""
    sampling = body.sampling(
        context.config, seed=context.seeds.next(), default_tokens=None, top_logprobs=body.num_top_logprobs
    )
    return Generate(
        rid,
        ChatPrompt(messages),
        sampling,
        body.n,
        tuple(body.stop),
        body.ignore_eos,
        body.skip_special_tokens,
    )


class ChatAnswer:
    """Formats one answer, whole or in chunks."""

    def __init__(self, body: ChatRequest, collector: Collector, answer_id: str, model: str) -> None:
        self._collector = collector
        self._logprobs = body.logprobs
        self._options = body.stream_options or StreamOptions()
        self._head = {"id": answer_id, "created": int(time.time()), "model": model}
        self._begun: set[int] = set()  # choices that have sent their role

    def whole(self) -> dict[str, Any]:
        """The answer of a request without `stream`."""
        choices = [self._whole_choice(choice) for choice in self._collector.choices]
        prompts = self._collector.prompts
        return {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": usage(prompts),
            **openai_metrics(prompts),
        }

    def _whole_choice(self, choice: ChoiceAnswer) -> dict[str, Any]:
        assert choice.finish is not None
        return {
            "index": choice.choice,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": chat_logprobs(choice.logprobs) if self._logprobs else None,
            "finish_reason": choice.finish.type,
            "matched_stop": choice.finish.matched,
        }

    def chunks(self, outputs: Sequence[TextOutput]) -> list[Any]:
        """Chunks for some outputs: the role first, then text, then the finish reason alone."""
        return [chunk for output in outputs for chunk in self._chunks_of(output)]

    def _chunks_of(self, output: TextOutput) -> list[Any]:
        index, _ = self._collector.add(output)
        chunks = []
        if index not in self._begun:
            self._begun.add(index)
            chunks.append(self._chunk(index, {"role": "assistant", "content": ""}))
        if output.text or output.token_ids:
            logprobs = chat_logprobs(output.logprobs or []) if self._logprobs else None
            chunks.append(self._chunk(index, {"content": output.text}, logprobs))
        if output.finish is not None:
            chunk = self._chunk(index, {})
            chunk["choices"][0] |= {"finish_reason": output.finish.type, "matched_stop": output.finish.matched}
            if self._collector.finished and not self._options.include_usage:
                chunk |= openai_metrics(self._collector.prompts)
            chunks.append(chunk)
        return chunks

    def last_chunks(self) -> list[Any]:
        """The usage chunk, if it was asked for; without it what it says of speculation comes with the last reason."""
        if not self._options.include_usage:
            return []
        prompts = self._collector.prompts
        head = {**self._head, "object": "chat.completion.chunk"}
        return [{**head, "choices": [], "usage": usage(prompts), **openai_metrics(prompts)}]

    def _chunk(self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        chunk = {
            **self._head,
            "object": "chat.completion.chunk",
            "choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}],
        }
        if self._options.continuous_usage_stats:
            chunk["usage"] = usage(self._collector.prompts)
        elif self._options.include_usage:
            chunk["usage"] = None
        return chunk
