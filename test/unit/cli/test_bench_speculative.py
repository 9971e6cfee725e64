"""`slipstream bench speculative` from end to end, with servers that answer as told in the place of its own."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from slipstream.cli import bench_speculative as command
from slipstream.config.options import LaunchOptions
from slipstream.errors import ConfigError
from support.scripted_server import Asked, Reply, ScriptedServer, scripted_server, sse


def script(drafts: bool) -> Any:
    def answer(asked: Asked) -> Reply:
        match asked.path:
            case "/v1/models":
                return Reply(body={"data": [{"id": "told"}]})
            case "/tokenize":
                return Reply(body={"tokens": [1, *asked.body["prompt"].encode()]})
            case "/flush_cache":
                return Reply(body={})
            case "/generate":
                meta = {"completion_tokens": 9, "prompt_tokens": 8, "finish_reason": {"type": "length"}}
                return Reply(pieces=lambda: iter(sse({"meta_info": meta | spec})))
            case "/v1/chat/completions":
                usage = {"prompt_tokens": 5, "completion_tokens": 7}
                last = {"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}
                return Reply(pieces=lambda: iter(sse(last | metrics)))
        raise AssertionError(asked.path)

    told = {"spec_accept_length": 3.0, "spec_num_proposed_drafts": 6, "spec_correct_drafts_histogram": [0, 1, 0, 1]}
    of_chat = {"speculative_decoding": {"num_draft_tokens": 2, "acceptance_histogram": [1, 1]}}
    spec, metrics = (told, {"metrics": of_chat}) if drafts else ({}, {})
    return answer


@dataclasses.dataclass
class Servers:
    started: list[tuple[LaunchOptions, ScriptedServer]] = dataclasses.field(default_factory=list)

    @contextmanager
    def start(self, options: LaunchOptions) -> Iterator[ScriptedServer]:
        with scripted_server(script(options.speculative_algorithm != "none")) as server:
            self.started.append((options, server))
            yield server


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    servers = Servers()
    monkeypatch.setattr(command, "OwnServer", servers.start)
    return servers


def asked(server: ScriptedServer, path: str, field: str) -> list[Any]:
    return [asked.body[field] for asked in server.asked if asked.path == path]


def test_every_case_on_every_workload(servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "rows.json"
    arguments = ["--num-steps", "1", "3", "--num-requests", "9", "--output-len", "9", "--output-json", str(output)]
    assert command.bench_speculative(arguments) == 0
    [(plain, plain_server), *drafting] = servers.started
    assert plain.speculative_algorithm == "none"
    kinds = [(options.speculative_num_steps, options.speculative_adaptive) for options, _ in drafting]
    assert kinds == [(1, "off"), (3, "off"), ("auto", "auto")]
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["workload"], row["num_steps"], row["adaptive"]) for row in rows] == [
        (workload, *how) for how in [(1, False), (3, False), (3, True)] for workload in ("questions", "source")
    ]
    for row in rows:
        assert row["num_failed"] == 0 and row["ratio"] > 0 and row["speculative"] is True
        histogram = [9, 9] if row["workload"] == "questions" else [0, 9, 0, 9]
        assert row["accepted"] == histogram and row["output_len"] == (7 if row["workload"] == "questions" else 9)
    for _, server in drafting:  # the same requests, warm-up included, as the server without drafts has had each time
        prompts = asked(server, "/generate", "input_ids")
        assert prompts == asked(plain_server, "/generate", "input_ids")[: len(prompts)]
        assert len({tuple(prompt) for prompt in prompts}) == 9 and all(64 <= len(prompt) <= 512 for prompt in prompts)
        assert sum(each.path == "/flush_cache" for each in server.asked) == 2
    shown = capsys.readouterr()
    for words in ("questions, 1 at once", "adaptive", "without drafts", "acceptance"):
        assert words in shown.out
    named = [line for line in shown.err.splitlines() if line.startswith("starting the server")]
    kinds_named = ["without drafts:", "with drafts, K 1:", "with drafts, K 3:", "with drafts, K up to 3, adaptive:"]
    assert named == [f"starting the server {kind}" for kind in kinds_named]


def test_questions_of_a_file_bear_its_name(servers: Servers, tmp_path: Path) -> None:
    path, output = tmp_path / "mine.txt", tmp_path / "rows.json"
    path.write_text("Why?\nHow?\n")
    flags = ["--workloads", "questions", "--questions", str(path), "--num-steps", "2", "--num-requests", "3"]
    assert command.bench_speculative([*flags, "--output-json", str(output)]) == 0
    assert {row["workload"] for row in map(json.loads, output.read_text().splitlines())} == {"questions of mine.txt"}
    contents = [messages[0]["content"] for messages in asked(servers.started[1][1], "/v1/chat/completions", "messages")]
    assert contents[-3:] == ["Why?", "How?", "Why?"]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--workloads", "source", "--questions", "x"], "--questions"),
        (["--speculative-num-steps", "3"], "--num-steps"),
        (["--port", "31000"], "--port"),
        (["--speculative-algorithm", "NGRAM", "--topk", "4"], "NGRAM"),
    ],
)
def test_cases_that_cannot_be_are_refused_before_anything_starts(
    flags: list[str], complaint: str, servers: Servers
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        command.bench_speculative(flags)
    assert not servers.started
