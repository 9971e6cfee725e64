"""The Engine's runtime as the server has it: three child processes."""

import asyncio

from slipstream.config.resolve import Resolved
from slipstream.launch.cluster import Cluster
from slipstream.launch.runtime import OnFailure, OnMessage


class ProcessRuntime:
    """A Cluster that lives in `loop`, which another thread runs."""

    def __init__(
        self, resolved: Resolved, loop: asyncio.AbstractEventLoop, on_message: OnMessage, on_failure: OnFailure
    ) -> None:
        self._loop = loop
        self._on_failure = on_failure
        self._cluster = Cluster(resolved, on_message)
        self.to_tokenizer = self._cluster.to_tokenizer
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()

    async def _start(self) -> None:
        await self._cluster.start()
        self._watch = asyncio.create_task(self._report_failure())

    async def _report_failure(self) -> None:
        self._on_failure(await self._cluster.wait_for_failure())

    async def _stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await self._cluster.stop()
