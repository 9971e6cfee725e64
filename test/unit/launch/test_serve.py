"""The start of a server with drafts, with a fake for its processes: it is not ready before the verdict."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from slipstream.config.options import LaunchOptions
from slipstream.config.resolve import Resolved
from slipstream.hf_transformers.embedded import embedded_path
from slipstream.launch import serve
from slipstream.launch.prepare import prepare
from slipstream.launch.serve import Server
from slipstream.messages.sampling import DraftStats, FinishReason
from slipstream.messages.to_server import ProcessFailed, TextOutput, TextOutputs, ToServer
from slipstream.messages.to_tokenizer import (
    Counters,
    FlushCache,
    FlushDone,
    FromServer,
    Generate,
    SchedulerReady,
    SchedulerStatus,
)
from support.draft_checkpoints import write_draft

WORKER = {"parameters": 1, "device": "cpu", "dtype": "float32", "load_s": 0.1, "num_pages_reason": "enough"}
DEADLINE_S = 10.0


class FakeCluster:
    """Ready at once; answers the canned run when `answers` is set."""

    def __init__(self, resolved: Resolved, on_message: Callable[[ToServer], None]) -> None:
        self.on_message = on_message
        self.to_tokenizer = self
        self.sent: list[FromServer] = []
        self.answers = asyncio.Event()
        self.death: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        self.on_message(SchedulerReady(100, 10, 16, WORKER))

    async def wait_for_failure(self) -> str:
        return await asyncio.shield(self.death)

    async def stop(self) -> None:
        self.death.cancel()

    def put(self, message: FromServer) -> None:
        self.sent.append(message)
        if isinstance(message, Generate):
            self._task = asyncio.create_task(self._answer(message.rid))
        elif isinstance(message, FlushCache):
            asyncio.get_running_loop().call_soon(self.on_message, FlushDone(message.rid))

    async def _answer(self, rid: str) -> None:
        await self.answers.wait()
        self.on_message(SchedulerStatus(0, 0, 10, 10, 0, 0.0, Counters(num_steps=9, num_drafts=4)))
        stats = DraftStats(12, (0, 0, 0, 4))
        self.on_message(TextOutputs([TextOutput(rid, 0, "x", [1], 3, 0, 16, FinishReason("length"), drafts=stats)]))


Clusters = list[FakeCluster]


@pytest.fixture
def clusters(monkeypatch: pytest.MonkeyPatch) -> Clusters:
    """The one that a server makes, once it runs."""
    made: Clusters = []

    def make(resolved: Resolved, on_message: Callable[[ToServer], None]) -> FakeCluster:
        made.append(FakeCluster(resolved, on_message))
        return made[-1]

    monkeypatch.setattr(serve, "Cluster", make)
    return made


@pytest.fixture
def server(tmp_path: Path, clusters: Clusters) -> Server:
    params = json.loads((embedded_path() / "params.json").read_text())
    draft = write_draft(tmp_path / "draft", params, num_layers=1)
    return Server(prepare(LaunchOptions(port=0, speculative_draft_model_path=str(draft))))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def get(server: Server, path: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(server.url + path)


def sent(clusters: Clusters, kind: type[Any]) -> list[Any]:
    return [message for cluster in clusters for message in cluster.sent if isinstance(message, kind)]


def test_the_verdict_comes_before_ready_and_leaves_no_trace(
    server: Server, clusters: Clusters, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run() -> None:
        running = asyncio.create_task(server.serve())
        await until(lambda: sent(clusters, Generate))
        before = await get(server, "/health")
        assert before.status_code == 503 and "trying the drafts" in before.text
        clusters[0].answers.set()
        await until(lambda: server._state.phase == "ready")
        assert (await get(server, "/health")).status_code == 200
        assert server._state.status is not None and server._state.status.counters == Counters()
        metrics = (await get(server, "/metrics")).text
        counts = [line.split()[-1] for line in metrics.splitlines() if "request_seconds_count" in line]
        assert counts and all(float(count) == 0 for count in counts), "the canned run is no client's request"
        server._on_signal()
        assert await running == 0

    asyncio.run(run())
    (flush,) = sent(clusters, FlushCache)
    assert flush.counters
    lines = capsys.readouterr().out.splitlines()
    (verdict,) = [index for index, line in enumerate(lines) if "speculation: EAGLE" in line]
    (ready,) = [index for index, line in enumerate(lines) if "ready in" in line]
    assert "acceptance length 4.00" in lines[verdict] and verdict < ready
    assert any("] draft: mistral_eagle" in line for line in lines[:verdict])


def test_a_death_in_the_canned_run_ends_the_start(
    server: Server, clusters: Clusters, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run() -> None:
        running = asyncio.create_task(server.serve())
        await until(lambda: sent(clusters, Generate))
        clusters[0].on_message(ProcessFailed("worker", "out of memory"))
        clusters[0].death.set_result("out of memory")
        async with asyncio.timeout(DEADLINE_S):
            assert await running == 1

    asyncio.run(run())
    lines = capsys.readouterr().out.splitlines()
    assert "error: out of memory" in lines[-1]
    assert not any("ready in" in line or "speculation:" in line for line in lines)


def test_a_signal_in_the_canned_run_ends_it(
    server: Server, clusters: Clusters, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run() -> None:
        running = asyncio.create_task(server.serve())
        await until(lambda: sent(clusters, Generate))
        server._on_signal()
        async with asyncio.timeout(DEADLINE_S):
            assert await running == 0

    asyncio.run(run())
    assert "ready in" not in capsys.readouterr().out


def test_without_drafts_there_is_no_canned_run(clusters: Clusters, capsys: pytest.CaptureFixture[str]) -> None:
    server = Server(prepare(LaunchOptions(port=0, speculative_algorithm="none")))

    async def run() -> None:
        running = asyncio.create_task(server.serve())
        await until(lambda: server._state.phase == "ready")
        server._on_signal()
        assert await running == 0

    asyncio.run(run())
    assert sent(clusters, Generate) == []
    assert "speculation" not in capsys.readouterr().out
