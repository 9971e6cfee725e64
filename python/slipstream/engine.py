"""The offline Engine: generate from Python, without HTTP.

from slipstream import Engine

with Engine() as engine:  # no model path: the small model that ships with Slipstream
    for answer in engine.generate(["def main():", "import os"], {"max_new_tokens": 32, "temperature": 0}):
        print(answer.text)
"""

import asyncio
import difflib
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from rich.progress import Progress

from slipstream.config.options import LaunchOptions
from slipstream.config.processes import ServerConfig
from slipstream.errors import ConfigError, RequestError, SlipstreamError, WorkerDied
from slipstream.launch.in_process import InProcessRuntime
from slipstream.launch.prepare import prepare
from slipstream.launch.process_runtime import ProcessRuntime
from slipstream.launch.runtime import Runtime
from slipstream.messages.sampling import DraftStats
from slipstream.messages.to_server import TextOutput, TokenText, ToServer
from slipstream.messages.to_tokenizer import ChatPrompt, Generate, Prompt, SchedulerReady, TextPrompt, TokenPrompt
from slipstream.server.client import Client
from slipstream.server.limits import MAX_TOP_LOGPROBS, check_token_ids
from slipstream.server.media import inline_images
from slipstream.server.schemas.base import parse
from slipstream.server.schemas.generate import NativeSampling
from slipstream.server.schemas.messages import check_messages
from slipstream.server.schemas.speculation import Speculation
from slipstream.server.seeds import SeedSource

Promptlike = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""Text, token ids, or chat messages in OpenAI's form."""


@dataclass(frozen=True)
class Answer:
    """One finished choice. `logprobs` has one entry for each token if they were asked for.

    `drafts` tells what speculation did for it; None: nothing was drafted.
    """

    text: str
    token_ids: list[int]
    finish_reason: str  # "stop" | "length" | "abort"
    prompt_len: int
    num_cached: int
    prompt_index: int = 0
    choice: int = 0
    logprobs: list[TokenText] | None = None
    prompt_logprobs: list[TokenText] | None = None
    drafts: DraftStats | None = None


@dataclass
class _Collected:
    """What has come of one choice. The outputs themselves are not kept: there is one for each step."""

    last: TextOutput
    prompt_logprobs: list[TokenText] | None  # these come with the first output
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenText] = field(default_factory=list)

    def add(self, output: TextOutput) -> None:
        self.last = output
        self.texts.append(output.text)
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs or ()

    def answer(self) -> Answer:
        last = self.last
        assert last.finish is not None
        return Answer(
            text="".join(self.texts),
            token_ids=self.token_ids,
            finish_reason=last.finish.type,
            prompt_len=last.prompt_len,
            num_cached=last.num_cached,
            choice=last.choice,
            logprobs=self.logprobs if last.logprobs is not None else None,
            prompt_logprobs=self.prompt_logprobs,
            drafts=last.drafts,
        )


class Engine:
    """A model, loaded and ready. Options are those of `slipstream serve` that are not about HTTP, by their field names.

    With `in_process` (the default) tokenizer, scheduler and worker share one background thread of this process;
    otherwise they are the same three processes as behind the server. Close the engine, or use it in a `with`.
    """

    def __init__(self, model_path: str | None = None, *, in_process: bool = True, **options: Any) -> None:
        _check_names(options)
        launch = LaunchOptions(model_path=model_path, **options)
        prepared = prepare(launch)
        self.spec, self.resolved = prepared.spec, prepared.resolved
        self._seeds = SeedSource(self.resolved.server.random_seed)
        self._rids = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._failure: str | None = None
        self._closed = False
        kind = InProcessRuntime if in_process else ProcessRuntime
        self._runtime: Runtime = kind(self.resolved, self._loop, self._on_message, self._on_failure)
        self._client = Client(self._runtime.to_tokenizer)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="slipstream-engine")
        self._thread.start()
        self._runtime.start()
        self._ready.wait()
        self._raise_failure()

    def generate(
        self,
        prompts: Promptlike | Sequence[Promptlike],
        sampling_params: Mapping[str, Any] | None = None,
        *,
        top_logprobs: int | None = None,
        prompt_logprobs_from: int | None = None,
        speculative: bool | None = None,
        max_draft_tokens: int | None = None,
        progress: bool = False,
    ) -> list[Answer]:
        """Answer one prompt or many: all answers in order of prompts, and with n > 1 of choices within each.

        `sampling_params` takes the names of POST /generate: max_new_tokens, temperature, top_p, top_k, min_p, n,
        sampling_seed, stop, stop_token_ids, ignore_eos, min_new_tokens, presence_penalty, frequency_penalty,
        repetition_penalty, logit_bias, skip_special_tokens, accept_cap. `top_logprobs` asks for logprobs of the answer,
        with that many alternatives; `prompt_logprobs_from` for those of the prompt from this position on.
        `speculative` False answers without drafts, with `max_draft_tokens` there are at most so many drafts in one
        step, with trees all branches together. `progress` shows a bar.
        Raises RequestError for a wrong value, before anything runs, or for a prompt that is too long.
        """
        batch: Sequence[Promptlike] = prompts if _is_many(prompts) else [prompts]  # type: ignore[assignment,list-item]
        values = sampling_params or {}
        limits = parse(Speculation, {"speculative": speculative, "max_draft_tokens": max_draft_tokens})
        requests = [self._request(prompt, values, limits, top_logprobs, prompt_logprobs_from) for prompt in batch]
        future = asyncio.run_coroutine_threadsafe(self._answer_all(requests, progress), self._loop)
        try:
            answers = future.result()
        except KeyboardInterrupt:
            future.cancel()  # aborts what still runs
            raise
        return [replace(answer, prompt_index=index) for index, group in enumerate(answers) for answer in group]

    async def stream(
        self,
        prompt: Promptlike,
        sampling_params: Mapping[str, Any] | None = None,
        *,
        top_logprobs: int | None = None,
        speculative: bool | None = None,
        max_draft_tokens: int | None = None,
    ) -> AsyncIterator[TextOutput]:
        """The outputs of one prompt as they come, in any event loop. Closing the iterator aborts the request."""
        limits = parse(Speculation, {"speculative": speculative, "max_draft_tokens": max_draft_tokens})
        request = self._request(prompt, sampling_params or {}, limits, top_logprobs, None)
        here = asyncio.get_running_loop()
        queue: asyncio.Queue[TextOutput | Exception | None] = asyncio.Queue()
        pump = asyncio.run_coroutine_threadsafe(self._pump(request, here, queue), self._loop)
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            pump.cancel()

    def flush_cache(self) -> None:
        """Forget cached prefixes; raises RequestError while requests run."""
        asyncio.run_coroutine_threadsafe(self._client.flush_cache(), self._loop).result()

    def close(self) -> None:
        """Stop everything. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._loop.call_soon_threadsafe(self._client.fail_all, WorkerDied("the engine was closed"))
        self._runtime.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- inside

    def _raise_failure(self) -> None:
        """A start that failed closes the engine."""
        if self._failure is not None:
            self.close()
            raise WorkerDied(self._failure)

    def _on_message(self, message: ToServer) -> None:
        self._client.handle(message)
        if isinstance(message, SchedulerReady):
            self._ready.set()

    def _on_failure(self, reason: str) -> None:
        self._failure = reason
        self._client.fail_all(WorkerDied(reason))
        self._ready.set()

    def _request(
        self,
        prompt: Promptlike,
        values: Mapping[str, Any],
        limits: Speculation,
        top_logprobs: int | None,
        prompt_logprobs_from: int | None,
    ) -> Generate:
        if self._closed or self._failure is not None:
            raise WorkerDied(self._failure or "the engine is closed")
        config = self.resolved.server
        fields = parse(NativeSampling, dict(values), "sampling_params")
        _check_logprobs(top_logprobs, prompt_logprobs_from)
        sampling = fields.to_params(
            config,
            seed=self._seeds.next(),
            top_logprobs=top_logprobs,
            prompt_logprobs_from=prompt_logprobs_from,
            max_draft_tokens=limits.draft_limit(config),
        )
        return Generate(
            rid=f"engine-{next(self._rids)}",
            prompt=_prompt(prompt, config),
            sampling=sampling,
            num_choices=fields.n,
            stop=tuple(fields.stop),
            ignore_eos=fields.ignore_eos,
            skip_special_tokens=fields.skip_special_tokens,
        )

    async def _answer_all(self, requests: list[Generate], progress: bool) -> list[list[Answer]]:
        if not progress:
            return await self._answer_each(requests, lambda: None)
        with Progress() as bar:
            task = bar.add_task("generating", total=len(requests))
            return await self._answer_each(requests, lambda: bar.advance(task))

    async def _answer_each(self, requests: list[Generate], answered: Callable[[], None]) -> list[list[Answer]]:
        limit = asyncio.Semaphore(4 * self.resolved.scheduler.max_running_requests)

        async def answer(request: Generate) -> list[Answer]:
            async with limit:
                choices = await self._answer(request)
            answered()
            return choices

        tasks = [asyncio.create_task(answer(request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for other in tasks:
                other.cancel()

    async def _answer(self, request: Generate) -> list[Answer]:
        collected: dict[int, _Collected] = {}
        async with self._client.generate(request) as generation:
            async for output in generation:
                if output.choice not in collected:
                    collected[output.choice] = _Collected(output, output.prompt_logprobs)
                collected[output.choice].add(output)
        return [collected[choice].answer() for choice in sorted(collected)]

    async def _pump(
        self, request: Generate, loop: asyncio.AbstractEventLoop, queue: "asyncio.Queue[TextOutput | Exception | None]"
    ) -> None:
        """Carry outputs from the engine's event loop to the caller's."""
        last: Exception | None = None
        try:
            async with self._client.generate(request) as generation:
                async for output in generation:
                    loop.call_soon_threadsafe(queue.put_nowait, output)
        except SlipstreamError as error:
            last = error
        loop.call_soon_threadsafe(queue.put_nowait, last)


def _is_many(prompts: Promptlike | Sequence[Promptlike]) -> bool:
    """Text, a list of ids and a list of messages are one prompt; a list of any of these is many."""
    if isinstance(prompts, str) or not prompts:
        return not isinstance(prompts, str)
    return isinstance(prompts[0], str) or (isinstance(prompts[0], Sequence) and not isinstance(prompts[0], Mapping))


def _prompt(prompt: Promptlike, config: ServerConfig) -> Prompt:
    if isinstance(prompt, str):
        return TextPrompt(prompt)
    kinds = set(map(type, prompt))  # of thousands of ids they are one
    if kinds and all(issubclass(kind, int) for kind in kinds):
        token_ids = [item for item in prompt if isinstance(item, int)]
        return TokenPrompt(check_token_ids(token_ids, config.vocab_size, "prompts"))
    if kinds and all(issubclass(kind, Mapping) for kind in kinds):
        messages = [dict(item) for item in prompt if isinstance(item, Mapping)]
        return ChatPrompt(inline_images(check_messages(messages, config.max_images)))
    raise RequestError("a prompt is text, a list of token ids, or a list of chat messages", param="prompts")


def _check_logprobs(top_logprobs: int | None, prompt_logprobs_from: int | None) -> None:
    if top_logprobs is not None and not 0 <= top_logprobs <= MAX_TOP_LOGPROBS:
        raise RequestError(f"top_logprobs is {top_logprobs}; it must be 0 to {MAX_TOP_LOGPROBS}", param="top_logprobs")
    if prompt_logprobs_from is not None and prompt_logprobs_from < 0:
        raise RequestError(
            f"prompt_logprobs_from is {prompt_logprobs_from}; it must be 0 or more", param="prompt_logprobs_from"
        )


def _check_names(options: Mapping[str, Any]) -> None:
    """Refuse unknown options, and those that only the HTTP server reads: they would be ignored here."""
    for name, value in options.items():
        field = LaunchOptions.__dataclass_fields__.get(name)
        if field is None:
            near = difflib.get_close_matches(name, LaunchOptions.__dataclass_fields__, n=1)
            raise ConfigError(f"Engine has no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        if field.metadata["server_only"] and value != field.default:
            raise ConfigError(f"Engine: {name} is an option of the HTTP server; leave it out")
