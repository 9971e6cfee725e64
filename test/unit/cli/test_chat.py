"""`slipstream chat` as its user sees it: through a pipe and in a terminal, with a server that answers as told."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from slipstream.cli.chat import printable
from slipstream.cli.chat_client import Timing
from slipstream.cli.conversation import Conversation
from support.scripted_server import Asked, Reply, ScriptedServer, scripted_server, sse

COMMAND = [sys.executable, "-m", "slipstream", "chat"]


def delta(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}


def answers(asked: Asked) -> Reply:
    """Repeats the last question with its count of messages; refuses the word `forbidden`; `slow` goes on for ever."""
    if asked.path == "/v1/models":
        return Reply(body={"data": [{"id": "parrot"}]})
    question = asked.body["messages"][-1]["content"]
    if question == "forbidden":
        return Reply(400, {"error": {"message": "the prompt is too long"}})
    if question == "slow":
        return Reply(pieces=endless)
    count = len(asked.body["messages"])
    return Reply(pieces=lambda: iter(sse(delta(""), delta(f"{count}: "), delta(f"€ {question}"), USAGE)))


def endless() -> Iterator[bytes]:
    for number in range(2000):
        yield sse(delta(f"word{number} "))[0]
        time.sleep(0.005)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server(answers) as server:
        yield server


def pipe(server_url: str, text: str, *flags: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, "--base-url", server_url, *flags], input=text, capture_output=True, text=True, timeout=60,
        env={**os.environ, **environment}, check=False,
    )  # fmt: skip


def questions(server: ScriptedServer) -> list[Any]:
    return [asked.body for asked in server.asked if asked.path == "/v1/chat/completions"]


def test_questions_from_a_pipe(server: ScriptedServer) -> None:
    done = pipe(server.url, "one\n\ntwo\n/reset\nthree\n/quit\nfour\n", "--system", "be brief", "--max-tokens", "9")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == "2: € one\n4: € two\n2: € three\n"
    first, second, third = questions(server)
    system = {"role": "system", "content": "be brief"}
    assert second["messages"] == [
        system, {"role": "user", "content": "one"}, {"role": "assistant", "content": "2: € one"},
        {"role": "user", "content": "two"},
    ]  # fmt: skip
    assert third["messages"] == [system, {"role": "user", "content": "three"}]
    assert first["max_tokens"] == 9 and "temperature" not in first and first["stream"] is True


def test_a_refused_question_is_forgotten_and_the_chat_goes_on(server: ScriptedServer) -> None:
    done = pipe(server.url, "one\nforbidden\ntwo\n", "--temperature", "0")
    assert done.returncode == 1
    assert "HTTP 400: the prompt is too long" in done.stderr
    assert done.stdout.splitlines() == ["1: € one", "", "3: € two"]
    assert [body["temperature"] for body in questions(server)] == [0, 0, 0]


def test_key_from_flag_or_environment(server: ScriptedServer) -> None:
    pipe(server.url, "one\n", "--api-key", "from-flag")
    pipe(server.url, "one\n", SLIPSTREAM_API_KEY="from-environment")
    keys = [asked.headers["authorization"] for asked in server.asked]
    assert keys == ["Bearer from-flag"] * 2 + ["Bearer from-environment"] * 2


def test_no_server_and_no_key() -> None:
    with scripted_server(lambda _: Reply(401, {})) as server:
        done = pipe(server.url, "one\n")
        assert done.returncode == 1 and "--api-key" in done.stderr
    done = pipe(server.url, "one\n")
    assert done.returncode == 1 and server.url in done.stderr and "`slipstream serve`" in done.stderr


def test_something_else_answers() -> None:
    with scripted_server(lambda _: Reply(200, ["hello"])) as server:
        done = pipe(server.url, "one\n")
    assert done.returncode == 1 and "not as a server of the OpenAI API" in done.stderr


class Terminal:
    """The command in a pseudo-terminal of its own; use it in a `with`, which ends it."""

    def __init__(self, url: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, "--base-url", url], stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**os.environ, "TERM": "dumb"},
        )  # fmt: skip
        os.close(slave)
        self.output = b""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)

    def wait_for(self, text: str, times: int = 1) -> None:
        deadline = time.monotonic() + 30
        while self.output.count(text.encode()) < times:
            assert time.monotonic() < deadline, self.output.decode()
            if select.select([self.master], [], [], 0.1)[0]:
                self.output += os.read(self.master, 65536)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def press(self, key: Callable[[], object], until: Callable[[], bool]) -> None:
        """Press a key as people do: again when it had no effect, because the prompt was not ready for it yet."""
        deadline = time.monotonic() + 30
        while not until():
            assert time.monotonic() < deadline, self.output.decode()
            key()
            time.sleep(0.2)
            while select.select([self.master], [], [], 0)[0]:
                try:
                    self.output += os.read(self.master, 65536)
                except OSError:  # the other end is closed
                    return


def test_in_a_terminal_an_answer_can_be_stopped(server: ScriptedServer) -> None:
    with Terminal(server.url) as terminal:
        terminal.wait_for("> ")
        terminal.type("one\n")
        terminal.wait_for("1: € one")
        terminal.wait_for("tokens/s")
        terminal.type("slow\n")
        terminal.wait_for("word20")
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("stopped")
        assert server.broken.wait(10), "the server must see the connection close"
        terminal.type("three\n")
        terminal.wait_for("5: € three")
        assert questions(server)[2]["messages"][3]["content"].startswith("word0 word1 ")  # what was said is remembered
        terminal.type("/reset\nfour\n")
        terminal.wait_for("1: € four")
        terminal.press(lambda: terminal.type("\x04"), until=lambda: terminal.process.poll() is not None)  # Ctrl-D
        assert terminal.process.wait(30) == 0


def test_ctrl_c_at_the_prompt_does_not_leave(server: ScriptedServer) -> None:
    with Terminal(server.url) as terminal:
        terminal.wait_for("> ")
        terminal.press(
            lambda: terminal.process.send_signal(signal.SIGINT), until=lambda: terminal.output.count(b"/quit") >= 2
        )
        terminal.type("/quit\n")
        assert terminal.process.wait(30) == 0


def test_an_answer_cannot_speak_to_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\r\x9b1mc\n\td€") == "a[2Jb1mc\n\td€"


def test_turns_alternate_whatever_happens() -> None:
    conversation = Conversation()
    for question, answer in [("a", "A"), ("b", ""), ("c", "C")]:
        conversation.ask(question)
        conversation.answer(answer)
    assert [(message["role"], message["content"]) for message in conversation.messages] == [
        ("user", "a"), ("assistant", "A"), ("user", "c"), ("assistant", "C"),
    ]  # fmt: skip
    conversation.reset()
    assert conversation.messages == []


def test_rate_line() -> None:
    assert Timing(30, 0.25, 2.0).describe() == "30 tokens, 15.0 tokens/s, first after 250 ms"
    assert Timing(None, 0.25, 2.0).describe() is None
