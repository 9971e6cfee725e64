"""POST /v1/completions."""

import time
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from slipstream.messages.to_server import TextOutput, TokenText
from slipstream.messages.to_tokenizer import Generate
from slipstream.server.body import read_object
from slipstream.server.context import Context
from slipstream.server.error_body import JSONResponse
from slipstream.server.formats.collect import ChoiceAnswer, Collector
from slipstream.server.formats.logprobs import LegacyLogprobs, token_string
from slipstream.server.formats.speculation import openai_metrics
from slipstream.server.formats.usage import usage
from slipstream.server.request_id import new_answer_id
from slipstream.server.routes.common import collect, start, stream
from slipstream.server.schemas.base import parse
from slipstream.server.schemas.completions import DEFAULT_MAX_TOKENS, CompletionRequest
from slipstream.server.schemas.openai import StreamOptions


async def completions(request: Request, context: Context) -> Response:
    """Continue one prompt or many."""
    body = parse(CompletionRequest, await read_object(request, context.config.max_request_bytes))
    body.check(context.config)
    answer_id = new_answer_id(request, "cmpl")
    generates = to_generates(body, context, answer_id)
    collector = Collector(generates)
    answer = CompletionAnswer(body, collector, answer_id, context.config.served_model_name)
    generation = start(context, generates, answer_id)
    if body.stream:
        return stream(context, generation, answer.chunks, answer.last_chunks)
    await collect(request, generation, collector)
    return JSONResponse(answer.whole())


def to_generates(body: CompletionRequest, context: Context, answer_id: str) -> list[Generate]:
    """What the tokenizer is asked, one message for each prompt. Without its own seed each prompt gets one."""
    prompts = body.prompts(context.config)
    first = body.sampling(
        context.config,
        seed=context.seeds.next(),
        default_tokens=DEFAULT_MAX_TOKENS,
        top_logprobs=body.logprobs,
        prompt_logprobs_from=0 if body.echo and body.logprobs is not None else None,
    )
    samplings = [first] + [
        first if body.seed is not None else msgspec.structs.replace(first, seed=context.seeds.next())
        for _ in prompts[1:]
    ]
    rids = [answer_id] if len(prompts) == 1 else [f"{answer_id}-{index}" for index in range(len(prompts))]
    return [
        Generate(rid, prompt, sampling, body.n, tuple(body.stop), body.ignore_eos, body.skip_special_tokens, body.echo)
        for rid, prompt, sampling in zip(rids, prompts, samplings, strict=True)
    ]


class CompletionAnswer:
    """Formats one answer, whole or in chunks. With echo, the prompt stands before the text of each of its choices."""

    def __init__(self, body: CompletionRequest, collector: Collector, answer_id: str, model: str) -> None:
        self._collector = collector
        self._echo = body.echo
        self._num_logprobs = body.logprobs
        self._options = body.stream_options or StreamOptions()
        self._head = {"id": answer_id, "object": "text_completion", "created": int(time.time()), "model": model}
        self._logprobs: dict[int, LegacyLogprobs] = {}
        self._begun: set[int] = set()

    def whole(self) -> dict[str, Any]:
        """The answer of a request without `stream`."""
        choices = []
        for index, choice in enumerate(self._collector.choices):
            assert choice.finish is not None
            choices.append(
                {
                    **self._piece(index, choice, choice.text, choice.logprobs),
                    "finish_reason": choice.finish.type,
                    "matched_stop": choice.finish.matched,
                }
            )
        prompts = self._collector.prompts
        return {**self._head, "choices": choices, "usage": usage(prompts), **openai_metrics(prompts)}

    def chunks(self, outputs: Sequence[TextOutput]) -> list[Any]:
        """Chunks for some outputs: text with a null finish reason, then the finish reason alone."""
        return [chunk for output in outputs for chunk in self._chunks_of(output)]

    def _chunks_of(self, output: TextOutput) -> list[Any]:
        index, choice = self._collector.add(output)
        chunks = []
        if output.text or output.token_ids or (self._echo and index not in self._begun):
            chunks.append(
                self._chunk({**self._piece(index, choice, output.text, output.logprobs or []), "finish_reason": None})
            )
        if output.finish is not None:
            chunk = self._chunk(
                {
                    "index": index,
                    "text": "",
                    "logprobs": None,
                    "finish_reason": output.finish.type,
                    "matched_stop": output.finish.matched,
                }
            )
            if self._collector.finished and not self._options.include_usage:
                chunk |= openai_metrics(self._collector.prompts)
            chunks.append(chunk)
        return chunks

    def last_chunks(self) -> list[Any]:
        """The usage chunk, if it was asked for; without it what it says of speculation comes with the last reason."""
        if not self._options.include_usage:
            return []
        prompts = self._collector.prompts
        return [{**self._head, "choices": [], "usage": usage(prompts), **openai_metrics(prompts)}]

    def _piece(self, index: int, choice: ChoiceAnswer, text: str, tokens: list[TokenText]) -> dict[str, Any]:
        """The next text of a choice, with the prompt before the first one."""
        num_hidden = 0
        if self._echo and index not in self._begun:
            prompt_text, prompt_tokens = choice.prompt.text or "", choice.prompt.logprobs or []
            if prompt_tokens and not prompt_text.startswith(token_string(prompt_tokens[0].data)):
                num_hidden = 1  # the beginning-of-sequence token
            text, tokens = prompt_text + text, [*prompt_tokens, *tokens]
        self._begun.add(index)
        logprobs = None
        if self._num_logprobs is not None:
            logprobs = self._logprobs.setdefault(index, LegacyLogprobs(self._num_logprobs)).add(tokens, num_hidden)
        return {"index": index, "text": text, "logprobs": logprobs}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = {**self._head, "choices": [choice]}
        if self._options.continuous_usage_stats:
            chunk["usage"] = usage(self._collector.prompts)
        elif self._options.include_usage:
            chunk["usage"] = None
        return chunk
