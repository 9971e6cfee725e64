"""Requests that end early: aborted, disconnected, unread. Each gives everything back."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlparse

import httpx
import pytest

from support.live_server import LiveServer

IDLE = {"num_running": 0, "num_waiting": 0}


def body(num_tokens: int = 1500, **extra: object) -> dict[str, object]:
    return {"text": "import os\n", "sampling_params": {"max_new_tokens": num_tokens, "ignore_eos": True}, **extra}


@pytest.fixture(scope="module")
def narrow() -> Iterator[LiveServer]:
    """A server that runs one request at a time and lets two more wait."""
    with LiveServer("--max-running-requests", "1", "--max-queued-requests", "2") as server:
        yield server


def everything_is_back(server: LiveServer) -> None:
    status = server.wait_for_status(**IDLE)
    assert status["num_pages_free"] + status["num_pages_cached"] == status["num_pages"]
    httpx.post(f"{server.url}/flush_cache", timeout=10).raise_for_status()
    server.wait_for_status(num_pages_free=status["num_pages"])
    assert server.status()["num_integrity_errors"] == 0


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.3])
def test_a_client_that_leaves_frees_its_pages(narrow: LiveServer, delay_s: float) -> None:
    with httpx.stream("POST", f"{narrow.url}/generate", json=body(stream=True), timeout=30) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        time.sleep(delay_s)
    left_at = time.monotonic()
    everything_is_back(narrow)
    assert time.monotonic() - left_at < 3.0


def test_a_client_that_leaves_before_a_whole_answer_frees_its_pages(narrow: LiveServer) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{narrow.url}/generate", json=body(), timeout=httpx.Timeout(0.3, connect=5))
    everything_is_back(narrow)


def test_abort_by_id_in_decode_and_in_the_queue(narrow: LiveServer) -> None:
    answers: dict[str, dict[str, object]] = {}

    def ask(rid: str) -> None:
        answers[rid] = httpx.post(f"{narrow.url}/generate", json=body(rid=rid), timeout=30).json()

    threads = [threading.Thread(target=ask, args=(rid,)) for rid in ("first", "second")]
    threads[0].start()
    narrow.wait_for_status(num_running=1)
    threads[1].start()
    narrow.wait_for_status(num_waiting=1)
    for rid in ("fir", "", "second", "first", "nobody"):  # only exact ids count
        httpx.post(f"{narrow.url}/abort_request", json={"rid": rid}, timeout=10)
    for thread in threads:
        thread.join(10)
    for rid in ("first", "second"):
        assert answers[rid]["meta_info"]["finish_reason"]["type"] == "abort"  # type: ignore[index]
    everything_is_back(narrow)


def test_a_full_queue_is_a_503_that_says_when_to_come_back(narrow: LiveServer) -> None:
    def ask() -> int:
        return httpx.post(f"{narrow.url}/generate", json=body(), timeout=60).status_code

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask) for _ in range(3)]
        narrow.wait_for_status(num_running=1, num_waiting=2)
        refused = httpx.post(f"{narrow.url}/generate", json=body(), timeout=10)
        httpx.post(f"{narrow.url}/abort_request", json={"abort_all": True}, timeout=10).raise_for_status()
        assert [future.result() for future in asked] == [200, 200, 200]
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert "--max-queued-requests" in refused.json()["error"]["message"]
    everything_is_back(narrow)


def test_a_client_that_stops_reading_is_aborted(server: LiveServer) -> None:
    """More text than the socket and the bounded buffer hold: many choices, cumulative text."""
    address = urlparse(server.url)
    assert address.hostname and address.port
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = body(stream=True)
        request["sampling_params"] = {"max_new_tokens": 1900, "ignore_eos": True, "n": 16}
        data = json.dumps(request).encode()
        head = (
            f"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n"
        )
        connection.sendall(head.encode() + b"\r\n" + data)
        server.wait_for_status(num_running=16)
        before = server.status()["num_generated_tokens"]
        server.wait_for_status(timeout_s=60, **IDLE)
        assert server.status()["num_generated_tokens"] - before < 16 * 1900, "it was not left to run to its end"
    everything_is_back(server)
