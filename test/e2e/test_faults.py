"""Trouble: processes that die, hang or must stop; and nothing is left behind."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from support.live_server import LiveServer, alive, wait_until_gone


def body(num_tokens: int) -> dict[str, object]:
    return {"text": "import os\n", "sampling_params": {"max_new_tokens": num_tokens, "ignore_eos": True}}


class Load:
    """Streams in the background; `errors` collects how each one ended, "" for a whole answer."""

    def __init__(self, url: str, count: int = 4, num_tokens: int = 1500) -> None:
        self.url = url
        self.body = {**body(num_tokens), "stream": True}
        self.endings: list[str] = []
        self.started = threading.Semaphore(0)
        self.threads = [threading.Thread(target=self._stream, daemon=True) for _ in range(count)]
        for thread in self.threads:
            thread.start()
        for _ in self.threads:
            assert self.started.acquire(timeout=30), "a stream did not start"

    def join(self, timeout_s: float) -> list[str]:
        deadline = time.monotonic() + timeout_s
        for thread in self.threads:
            thread.join(max(deadline - time.monotonic(), 0.01))
        assert not any(thread.is_alive() for thread in self.threads), "a client still waits"
        return self.endings

    def _stream(self) -> None:
        last = ""
        try:
            with httpx.stream("POST", f"{self.url}/generate", json=self.body, timeout=60) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data: ") and not last:
                        self.started.release()
                    last = line or last
                    if '"error"' in line:
                        self.endings.append(line)
                        return
        except httpx.HTTPError as error:
            self.endings.append(f"broken connection: {type(error).__name__}")
            return
        self.endings.append("" if "[DONE]" in last else f"ended with {last}")


@pytest.fixture
def fresh() -> Iterator[LiveServer]:
    with LiveServer("--drain-timeout-s", "20") as server:
        yield server


@pytest.mark.parametrize("role", ["tokenizer", "scheduler", "worker"])
def test_a_killed_process_ends_everything_with_an_error(fresh: LiveServer, role: str) -> None:
    load = Load(fresh.url)
    children = fresh.children
    assert set(children) == {"tokenizer", "scheduler", "worker"}
    pids = [child.pid for child in children.values()]
    killed_at = time.monotonic()
    children[role].send_signal(signal.SIGKILL)
    endings = load.join(5.0)
    assert all(f"the {role} process ended by signal 9" in ending for ending in endings), endings
    assert fresh.wait(5.0) == 1
    assert time.monotonic() - killed_at < 5.0
    assert wait_until_gone(pids, 1.0) == []
    assert f"the {role} process ended by signal 9" in fresh.output


def test_no_process_survives_a_killed_launcher(fresh: LiveServer) -> None:
    Load(fresh.url)
    pids = [child.pid for child in fresh.children.values()]
    fresh.process.kill()
    assert wait_until_gone(pids, 5.0) == []


def test_no_process_survives_a_killed_launcher_even_when_it_is_stopped(fresh: LiveServer) -> None:
    pids = [child.pid for child in fresh.children.values()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    fresh.process.kill()
    assert wait_until_gone(pids, 5.0) == []


def test_a_hung_step_is_found_and_ends_the_server() -> None:
    with LiveServer("--watchdog-timeout-s", "1") as server:
        load = Load(server.url, count=2)
        pids = [child.pid for child in server.children.values()]
        os.kill(server.children["worker"].pid, signal.SIGSTOP)
        endings = load.join(5.0)
        assert all("--watchdog-timeout-s" in ending for ending in endings), endings
        assert server.wait(8.0) == 1
        assert wait_until_gone(pids, 1.0) == []


def test_sigterm_lets_requests_finish_refuses_new_ones_and_exits_0(fresh: LiveServer) -> None:
    load = Load(fresh.url, count=2, num_tokens=60)
    pids = [child.pid for child in fresh.children.values()]
    fresh.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    refused = httpx.post(f"{fresh.url}/generate", json=body(5), timeout=10)
    assert refused.status_code == 503 and "retry-after" in refused.headers
    assert httpx.get(f"{fresh.url}/ready", timeout=10).status_code == 503
    assert load.join(30.0) == ["", ""]
    assert fresh.wait(10.0) == 0
    assert alive(pids) == []


def test_a_process_that_dies_while_requests_drain_is_an_error(fresh: LiveServer) -> None:
    load = Load(fresh.url, count=2)
    worker = fresh.children["worker"]
    fresh.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    worker.send_signal(signal.SIGKILL)
    assert all("the worker process ended by signal 9" in ending for ending in load.join(5.0))
    assert fresh.wait(5.0) == 1


def test_a_drain_that_takes_too_long_is_cut() -> None:
    with LiveServer("--drain-timeout-s", "0.3") as server:
        load = Load(server.url, count=2)
        assert server.terminate(10.0) == 0
        assert all("shutting down" in ending for ending in load.join(5.0))


def test_a_second_interrupt_exits_at_once(fresh: LiveServer) -> None:
    load = Load(fresh.url, count=2)
    fresh.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    fresh.process.send_signal(signal.SIGINT)
    fresh.wait(5.0)
    load.join(5.0)


def test_an_interrupt_during_the_start_leaves_nothing() -> None:
    server = LiveServer()
    server.start(wait=False)
    deadline = time.monotonic() + 20
    while len(server.children) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    pids = [child.pid for child in server.children.values()]
    assert server.terminate(10.0) == 0
    assert alive(pids) == []
    server.__exit__()
