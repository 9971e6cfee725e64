"""POST /generate, in SGLang's form."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from slipstream.messages.to_server import TextOutput
from slipstream.messages.to_tokenizer import Generate, TextPrompt, TokenPrompt
from slipstream.server.body import read_object
from slipstream.server.context import Context
from slipstream.server.error_body import JSONResponse
from slipstream.server.formats.collect import ChoiceAnswer, Collector
from slipstream.server.formats.logprobs import native_logprobs, native_top_logprobs
from slipstream.server.formats.speculation import native_drafts
from slipstream.server.request_id import new_answer_id
from slipstream.server.routes.common import collect, start, stream
from slipstream.server.schemas.base import parse
from slipstream.server.schemas.generate import GenerateRequest, NativeSampling


async def generate(request: Request, context: Context) -> Response:
    """Answer one prompt or a batch."""
    body = parse(GenerateRequest, await read_object(request, context.config.max_request_bytes))
    body.check(context.config)
    name = new_answer_id(request, "gen")
    prompts = body.prompts(context.config)
    samplings = body.samplings(len(prompts))
    generates = to_generates(body, prompts, samplings, context, name)
    collector = Collector(generates)
    answer = NativeAnswer(body, collector, time.monotonic)
    generation = start(context, generates, name if len(generates) > 1 else generates[0].rid)
    if body.stream:
        return stream(context, generation, answer.chunks, list)
    await collect(request, generation, collector)
    return JSONResponse(answer.whole())


def to_generates(
    body: GenerateRequest,
    prompts: Sequence[TextPrompt | TokenPrompt],
    samplings: Sequence[NativeSampling],
    context: Context,
    name: str,
) -> list[Generate]:
    """What the tokenizer is asked, one message for each prompt. `name` makes rids where the client sends none."""
    start_len, draft_limit = body.logprob_start_len, body.draft_limit(context.config)
    rids = body.rids(len(prompts)) or ([name] if len(prompts) == 1 else [f"{name}-{i}" for i in range(len(prompts))])
    return [
        Generate(
            rid,
            prompt,
            sampling.to_params(
                context.config,
                seed=context.seeds.next(),
                top_logprobs=body.top_logprobs_num if body.return_logprob else None,
                prompt_logprobs_from=start_len if body.return_logprob and start_len >= 0 else None,
                max_draft_tokens=draft_limit,
            ),
            sampling.n,
            tuple(sampling.stop),
            sampling.ignore_eos,
            sampling.skip_special_tokens,
        )
        for rid, prompt, sampling in zip(rids, prompts, samplings, strict=True)
    ]


class NativeAnswer:
    """Formats one answer. Streamed text, ids and logprobs are cumulative, as SGLang's clients expect."""

    def __init__(self, body: GenerateRequest, collector: Collector, clock: Callable[[], float]) -> None:
        self._body = body
        self._collector = collector
        self._clock = clock
        self._started = clock()
        self._is_list = body.is_batch or len(collector.choices) > 1

    def whole(self) -> Any:
        """An object, or a list of them for a batch or several choices."""
        answers = [self._answer(choice) for choice in self._collector.choices]
        return answers if self._is_list else answers[0]

    def chunks(self, outputs: Sequence[TextOutput]) -> list[Any]:
        """The answer so far, one value for each choice that has news; `index` counts over prompts and choices."""
        news = dict(self._collector.add(output) for output in outputs)
        return [
            {**self._answer(choice), **({"index": index} if self._is_list else {})}
            for index, choice in news.items()
            if choice.token_ids or choice.finish is not None
        ]

    def _answer(self, choice: ChoiceAnswer) -> dict[str, Any]:
        prompt = choice.prompt
        meta = {
            "id": prompt.rid,
            "finish_reason": self._finish_reason(choice),
            "prompt_tokens": prompt.prompt_len,
            "completion_tokens": choice.num_generated,
            "cached_tokens": prompt.num_cached,
            "e2e_latency": self._clock() - self._started,
            **native_drafts(choice.drafts),
        }
        if self._body.return_logprob:
            meta |= self._logprobs(choice)
        return {"text": choice.text, "output_ids": choice.token_ids, "meta_info": meta}

    def _finish_reason(self, choice: ChoiceAnswer) -> dict[str, Any] | None:
        finish = choice.finish
        if finish is None:
            return None
        if finish.type == "length":
            return {"type": "length", "length": choice.num_generated}
        return {"type": finish.type, "matched": finish.matched} if finish.type == "stop" else {"type": finish.type}

    def _logprobs(self, choice: ChoiceAnswer) -> dict[str, Any]:
        with_text, prompt_tokens = self._body.return_text_in_logprobs, choice.prompt.logprobs or []
        result: dict[str, Any] = {
            "input_token_logprobs": native_logprobs(prompt_tokens, with_text),
            "output_token_logprobs": native_logprobs(choice.logprobs, with_text),
        }
        if self._body.top_logprobs_num:
            result["input_top_logprobs"] = native_top_logprobs(prompt_tokens, with_text)
            result["output_top_logprobs"] = native_top_logprobs(choice.logprobs, with_text)
        return result
