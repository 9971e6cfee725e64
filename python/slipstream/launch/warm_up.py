"""The canned run before a server is ready: do the drafts of this pair hit?"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from slipstream.errors import RequestError
from slipstream.log import get_logger
from slipstream.messages.sampling import DraftStats, SamplingParams
from slipstream.messages.to_tokenizer import ChatPrompt, Generate, Prompt, TextPrompt
from slipstream.server.client import Client, new_rid

logger = get_logger(__name__)

QUESTION = "What does json.dumps do?"
NUM_TOKENS = 48
TIMEOUT_S = 60.0
FLUSH_TIMEOUT_S = 5.0
FLUSH_RETRY_S = 0.05


@dataclass(frozen=True)
class WarmUp:
    """What the canned run has shown. Without `stats` nothing was drafted, or `problem` says what went wrong."""

    stats: DraftStats | None
    problem: str | None = None

    @property
    def acceptance_length(self) -> float | None:
        """Mean tokens of one verify step, the bonus among them."""
        return self.stats.acceptance_length if self.stats is not None else None


async def warm_up(client: Client, timeout_s: float = TIMEOUT_S) -> WarmUp:
    """Answer one greedy question, as far as `timeout_s` allows, and forget its pages and counts. What the depth
    of drafts is chosen by, step times and acceptance, is kept.

    Raises WorkerDied when the runtime has ended.
    """
    result = WarmUp(None, f"no answer within {timeout_s:g} s")
    try:
        with contextlib.suppress(TimeoutError):  # what has come until then counts
            async with asyncio.timeout(timeout_s):
                async for stats in _stats(client):
                    result = WarmUp(stats)
    except RequestError as error:
        result = WarmUp(None, str(error))
    problem = await _forget(client)
    return result if problem is None or result.problem else WarmUp(result.stats, problem)


async def _stats(client: Client) -> AsyncIterator[DraftStats | None]:
    """What was drafted up to each output."""
    try:
        async for stats in _answer(client, ChatPrompt([{"role": "user", "content": QUESTION}])):
            yield stats
    except RequestError as error:  # a tokenizer without chats
        logger.debug("the canned run is no chat: %s", error)
        async for stats in _answer(client, TextPrompt(QUESTION)):
            yield stats


async def _answer(client: Client, prompt: Prompt) -> AsyncIterator[DraftStats | None]:
    # past the end of the answer too, so that there is always something to draft
    sampling = SamplingParams(max_new_tokens=NUM_TOKENS, seed=0, temperature=0.0)
    async with client.generate(Generate(new_rid("warm-up"), prompt, sampling, ignore_eos=True)) as generation:
        async for output in generation:
            yield output.drafts


async def _forget(client: Client) -> str | None:
    """Empty the prefix cache and the counters; says why not. A run that was cut off needs a moment to be gone."""
    problem = "no answer"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FLUSH_TIMEOUT_S):
            while True:
                try:
                    await client.flush_cache(counters=True)
                except RequestError as error:
                    problem = str(error)
                    await asyncio.sleep(FLUSH_RETRY_S)
                else:
                    return None
    return f"the canned run is still counted: {problem}"
