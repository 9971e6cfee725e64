"""The flags of `slipstream bench`, and `bench serving` from end to end against a server that answers as told."""

import json
from pathlib import Path
from typing import Any

import pytest

from slipstream.cli.bench import bench_serving, main, serving_parser
from slipstream.cli.bench_one_batch import bench_one_batch, one_batch_parser
from slipstream.config.flags import from_namespace
from slipstream.config.options import LaunchOptions
from slipstream.errors import ConfigError
from support.scripted_server import Asked, Reply, scripted_server, sse


def meta(num_tokens: int, finish: str | None = None) -> dict[str, Any]:
    reason = {"type": finish} if finish else None
    return {
        "meta_info": {"completion_tokens": num_tokens, "prompt_tokens": 8, "cached_tokens": 0, "finish_reason": reason}
    }


class FullServer:
    """Refuses every third prompt."""

    def __init__(self) -> None:
        self.num_generated = 0

    def __call__(self, asked: Asked) -> Reply:
        match asked.path:
            case "/v1/models":
                return Reply(body={"data": [{"id": "told"}]})
            case "/tokenize":
                return Reply(body={"tokens": [1, *range(10, 400)] if asked.body["prompt"] else [1]})
            case "/flush_cache":
                return Reply(body={})
            case "/generate":
                self.num_generated += 1
                if self.num_generated % 3 == 0:
                    return Reply(503, {"error": {"message": "the queue is full"}})
                last = asked.body["sampling_params"]["max_new_tokens"]
                return Reply(pieces=lambda: iter(sse(meta(1), meta(last, "length"))))
        raise AssertionError(asked.path)


def test_serving_counts_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "rows.json"
    script = FullServer()
    flags = [
        "--num-requests",
        "10",
        "--concurrency",
        "1",
        "4",
        "--input-len",
        "8",
        "--output-len",
        "5",
        "--output-json",
    ]
    with scripted_server(script) as server:
        assert bench_serving(["--base-url", server.url, *flags, str(output)]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["concurrency"] for row in rows] == [1, 4]
    for row in rows:
        assert row["model"] == "told" and row["num_requests"] == 10
        assert 3 <= row["num_failed"] <= 4 and sum(row["failures"].values()) == row["num_failed"]
        assert (row["input_len"], row["output_len"]) == (8, 5)
    shown = capsys.readouterr().out
    assert "failed: HTTP 503: the queue is full" in shown and "1 at once" in shown
    prompts = [tuple(asked.body["input_ids"]) for asked in server.asked if asked.path == "/generate"]
    assert len(set(prompts)) == len(prompts) and all(len(prompt) == 8 for prompt in prompts)


def test_a_server_that_refuses_everything_is_an_error() -> None:
    def script(asked: Asked) -> Reply:
        return FullServer()(asked) if asked.path != "/generate" else Reply(503, {"error": {"message": "full"}})

    with scripted_server(script) as server, pytest.raises(ConfigError, match="HTTP 503: full"):
        bench_serving(["--base-url", server.url, "--num-requests", "2"])


def test_server_flags_and_a_running_server_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--model-path is for a server that the benchmark starts"):
        bench_serving(["--base-url", "http://127.0.0.1:9", "--model-path", "x"])


def test_server_flags_are_those_of_serve() -> None:
    flags = ["--dtype", "float32", "--disable-radix-cache", "--max-running-requests", "3"]
    for parser in (one_batch_parser(), serving_parser()):
        options = from_namespace(LaunchOptions, parser.parse_args(flags))
        assert (options.dtype, options.disable_radix_cache, options.max_running_requests) == ("float32", True, 3)


@pytest.mark.parametrize(
    "flags",
    [
        ["--batch-size", "0"], ["--runs", "x"], ["--output-len", "-3"], ["--memory-bandwidth-gbs", "0"],
        ["--memory-bandwidth-gbs", "nan"], ["--batchsize", "1"],
    ],
)  # fmt: skip
def test_wrong_flags_end_with_2(flags: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["one-batch", *flags])


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--draft"], "--draft belongs to a preset"),
        (["--cases", "targets"], "--cases belongs to a preset"),
        (["--preset", "7b", "--cases", "decode", "--batch-size", "4"], "--batch-size is given, but --cases"),
        (["--preset", "24b", "--draft", "--cases", "targets"], "no target is set for --cases targets of 24b with"),
        (["--preset", "7b", "--model-path", "x"], "--model-path is given, but --preset"),
        (["--output-json", "/nowhere/rows.jsonl"], "--output-json /nowhere/rows.jsonl cannot be written"),
    ],
)
def test_flags_of_which_one_would_not_be_read(flags: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        bench_one_batch(flags)


def test_unknown_benchmark() -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["two-batch"])
    with pytest.raises(SystemExit, match="0"):
        main([])
