"""The server process: start the children, serve HTTP, watch, drain, and end with the right exit code."""

import asyncio
import contextlib
import gc
import signal
import socket
import time
from collections.abc import Iterator

import msgspec
import uvicorn

from slipstream.errors import ConfigError, SlipstreamError, WorkerDied
from slipstream.launch.cluster import Cluster
from slipstream.launch.display import StartupDisplay
from slipstream.launch.http_protocol import DeadlineProtocol
from slipstream.launch.prepare import Prepared
from slipstream.launch.report import draft_in_one_line, in_one_line
from slipstream.launch.verdict import verdict, verdict_warnings
from slipstream.launch.warm_up import warm_up
from slipstream.log import get_logger
from slipstream.messages.to_server import Progress, Stage, ToServer
from slipstream.messages.to_tokenizer import Counters, SchedulerReady
from slipstream.server.app import create_app
from slipstream.server.client import Client
from slipstream.server.state import ServerState, health

logger = get_logger(__name__)

HEALTH_CHECK_S = 0.25
DRAIN_CHECK_S = 0.02
CUT_OFF_S = 0.1  # time for the last answers of a drain to leave
LAST_WORDS_S = 1.0  # for a child that dies to say why
LAST_ANSWERS_S = 1.0  # after a failure: time for the error answers to leave
NUM_SECONDS_CLOSE = 2


class HttpServer(uvicorn.Server):
    """uvicorn, with signals left to Server below."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """One run of the server. serve() returns the exit code."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._config = prepared.resolved.server
        self._display = StartupDisplay()
        self._state = ServerState()
        self._socket = _listen(self._config.host, self._config.port)
        self._interrupts = 0
        self._drain_until: float | None = None  # time.monotonic(); set by the first signal
        self._interrupted = asyncio.Event()
        self._scheduler_ready = asyncio.Event()

    @property
    def url(self) -> str:
        """Where clients reach this server."""
        host, port = self._socket.getsockname()[:2]
        reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"

    async def serve(self) -> int:
        """Serve until a signal (0) or a failure (1)."""
        self._catch_signals()
        self._introduce()
        cluster = Cluster(self._prepared.resolved, self._on_message)
        self._client = Client(cluster.to_tokenizer)
        self._own_client = Client(cluster.to_tokenizer)  # for the canned run, which is not to show in metrics
        options = {name: value for name, (value, _) in self._prepared.resolved.reasons.items()}
        app = create_app(self._config, self._client, self._state, lambda: options)
        http = HttpServer(
            uvicorn.Config(
                app,
                http=DeadlineProtocol,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=NUM_SECONDS_CLOSE,
                timeout_keep_alive=30,
                lifespan="off",
                server_header=False,
            )
        )
        serving = asyncio.create_task(http.serve(sockets=[self._socket]))
        self._starting = asyncio.create_task(self._finish_start())
        try:
            await cluster.start()
            failure = await self._watch(cluster)
            if failure is not None:
                await self._fail(failure)
                return 1
            return 0
        finally:
            self._starting.cancel()
            self._display.close()
            http.should_exit = True
            http.force_exit = self._interrupts > 1
            await serving
            await cluster.stop()

    def _on_message(self, message: ToServer) -> None:
        self._state.handle(message, time.monotonic())
        self._client.handle(message)
        if self._state.phase == "starting":
            self._own_client.handle(message)
        if self._state.phase == "failed":
            return  # the error is the last thing to read
        if isinstance(message, Stage | Progress):
            self._display.show(message)
        elif isinstance(message, SchedulerReady):
            self._scheduler_ready.set()

    def _introduce(self) -> None:
        """The first words: what is about to be loaded."""
        name, spec, draft = self._config.served_model_name, self._prepared.spec, self._prepared.draft
        self._display.line(f"model {name} from {spec.path}: {spec.layout_reason}")
        self._display.line(f"model {name}: {in_one_line(spec)}")
        if draft is not None:
            self._display.line(f"draft from {draft.path}: {draft.layout_reason}")
            self._display.line(f"draft: {draft_in_one_line(draft)}")
        for warning in self._prepared.warnings:
            self._display.line(f"warning: {warning}")

    async def _finish_start(self) -> None:
        """When the model is loaded: what the worker found, the verdict on the drafts, limits and the URL."""
        await self._scheduler_ready.wait()
        ready = self._state.scheduler
        assert ready is not None
        self._describe_worker(ready)
        gc.collect()
        gc.freeze()  # what is here now stays; a collection that looked at it all would hold up every stream
        if self._prepared.resolved.worker.drafts is not None:
            await self._judge_drafts()
        self._announce(ready)

    async def _judge_drafts(self) -> None:
        self._state.stage = "trying the drafts"
        result = await warm_up(self._own_client)
        if self._state.status is not None:  # until the next heartbeat
            self._state.status = msgspec.structs.replace(self._state.status, counters=Counters())
        self._display.line(verdict(self._prepared, result))
        for warning in verdict_warnings(self._prepared, result):
            self._display.warning(warning)

    def _describe_worker(self, ready: SchedulerReady) -> None:
        worker = ready.worker
        self._display.line(
            f"worker: {worker['parameters'] / 1e6:.1f} M parameters on {worker['device']}, "
            f"activations in {worker['dtype']}, "
            f"loaded in {worker['load_s']:.1f} s"
        )
        if worker["device"] != "cpu":
            self._display.line(
                f"worker: {worker['device_name']}, attention by {worker['attention_backend']}: "
                f"{worker['attention_backend_reason']}"
            )
        self._display.line(
            f"worker: {ready.num_pages} KV pages of {ready.page_size} tokens: {worker['num_pages_reason']}"
        )

    def _announce(self, ready: SchedulerReady) -> None:
        """The last word of a start: limits and the URL."""
        elapsed_s = self._display.elapsed_s
        self._state.ready(elapsed_s)
        self._display.line(
            f"ready in {elapsed_s:.1f} s: up to {self._config.max_running_requests} requests at once, "
            f"{ready.max_sequence_len} tokens each at most"
        )
        self._display.line(f"serving {self._config.served_model_name} at {self.url}")

    async def _watch(self, cluster: Cluster) -> str | None:
        """Until a signal and the end of the drain after it (None), or until something has died or hangs (why)."""
        death = asyncio.create_task(cluster.wait_for_failure())
        try:
            while not self._is_over():
                interval_s = DRAIN_CHECK_S if self._interrupts else HEALTH_CHECK_S
                interrupt = asyncio.create_task(self._interrupted.wait())
                await asyncio.wait({death, interrupt}, timeout=interval_s, return_when=asyncio.FIRST_COMPLETED)
                interrupt.cancel()
                self._interrupted.clear()
                if death.done():
                    return death.result()
                if failure := self._start_failure():
                    await asyncio.wait({death}, timeout=LAST_WORDS_S)
                    return death.result() if death.done() else failure
                if self._state.phase != "starting":
                    healthy, reason = health(self._state, time.monotonic(), self._config.watchdog_timeout_s)
                    if not healthy:
                        return reason
        finally:
            death.cancel()
        await self._cut_off()
        return None

    def _start_failure(self) -> str | None:
        """Why the start ended early, if it did."""
        if not self._starting.done() or (error := self._starting.exception()) is None:
            return None
        if not isinstance(error, SlipstreamError):
            logger.error("the start failed", exc_info=error)
        return f"the start failed: {error}"

    def _is_over(self) -> bool:
        """After the first signal requests may finish for drain_timeout_s; a second signal ends that at once."""
        if not self._interrupts:
            return False
        now = time.monotonic()
        if self._drain_until is None:
            self._drain_until = now + self._config.drain_timeout_s
            self._state.drain()
            if self._client.num_requests:
                self._display.line(
                    f"stopping: requests in flight may finish within {self._config.drain_timeout_s:g} s; "
                    "interrupt again to stop now"
                )
            else:
                self._display.line("stopping")
        return not self._client.num_requests or now >= self._drain_until or self._interrupts > 1

    async def _cut_off(self) -> None:
        """Answer what still runs when the drain is over."""
        if self._client.num_requests:
            self._display.line(f"cut off: {self._client.num_requests} in flight")
            self._client.fail_all(WorkerDied("the server is shutting down"))
            await asyncio.sleep(CUT_OFF_S)

    async def _fail(self, failure: str) -> None:
        """Answer every open request with the error, say why, give the answers a moment to leave."""
        was_ready = self._state.phase != "starting"
        self._starting.cancel()
        self._state.fail(failure)
        for client in (self._client, self._own_client):
            client.fail_all(WorkerDied(failure))
        self._display.close()
        self._display.line(f"error: {failure}")
        if was_ready:
            await asyncio.sleep(LAST_ANSWERS_S)

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        self._interrupts += 1
        self._interrupted.set()


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises ConfigError when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Without Nagle's algorithm, which makes every answer on a kept-alive connection wait 40 ms for the client's delayed
    # acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}; change --host or --port") from None
    listener.listen(2048)
    return listener


def serve(prepared: Prepared) -> int:
    """Run a server to its end; returns the exit code."""

    async def run() -> int:
        return await Server(prepared).serve()

    return asyncio.run(run())
