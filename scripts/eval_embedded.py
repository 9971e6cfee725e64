"""Measure the embedded model through a running server: recall of docstrings, and loss on held-out source.

    python -m slipstream.launch_server &
    python scripts/eval_embedded.py --base-url http://127.0.0.1:30000 --output-json embedded.json

Questions and held-out files are rebuilt from the standard library of the running Python, by the code and the seed of
the training, so the numbers compare with the model card only under the Python version that `training.json` records.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedded_training.bpe import TextEncoder
from embedded_training.card import RECORD
from embedded_training.corpus import Library, held_out_windows, python_name, read_library
from embedded_training.docstrings import Item
from embedded_training.evaluate import bits_per_byte
from embedded_training.questions import DEFAULT_PHRASING, answers_rightly, ask, sampled_items
from slipstream.bench import results

REPOSITORY = Path(__file__).resolve().parent.parent
EMBEDDED = REPOSITORY / "python" / "slipstream" / "embedded"
MAX_ANSWER_TOKENS = 128
STARTUP_SECONDS = 300


class Refused(RuntimeError):
    """The server answered with an error status."""

    def __init__(self, path: str, status: int, text: str) -> None:
        super().__init__(f"{path} answered {status}: {text[:500]}")
        self.status = status


class Server:
    """The two endpoints that the measurements need."""

    def __init__(self, base_url: str, api_key: str | None, timeout_s: float) -> None:
        self._base_url = base_url.rstrip("/")
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._model = ""

    def wait(self, seconds: float) -> None:
        """Returns when the server lists its model; raises TimeoutError after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self._model = self._send("/v1/models", None)["data"][0]["id"]
                return
            except (urllib.error.URLError, ConnectionError, Refused) as error:
                if isinstance(error, Refused) and error.status != 503:  # 503: still starting
                    raise
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no server at {self._base_url} after {seconds:.0f} s: {error}") from error
                time.sleep(0.5)

    def greedy_answer(self, question: str) -> str:
        """The text that a chat with this one question gives at temperature 0."""
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": MAX_ANSWER_TOKENS,
        }
        return self._send("/v1/chat/completions", body)["choices"][0]["message"]["content"] or ""

    def logprobs(self, ids: Sequence[int]) -> list[float]:
        """ln p of every given token but the first."""
        body = {
            "input_ids": list(ids),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": 0,
        }
        entries = self._send("/generate", body)["meta_info"]["input_token_logprobs"]
        if [token for _, token, *_ in entries] != list(ids):
            raise ValueError(f"asked for logprobs of {len(ids)} tokens, got {len(entries)} entries or other tokens")
        return [float(logprob) for logprob, *_ in entries[1:]]

    def _send(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base_url + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                answer: dict[str, Any] = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            raise Refused(path, error.code, error.read().decode(errors="replace")) from error


def measure_recall(server: Server, items: Sequence[Item], template: str, parallel: int) -> dict[str, Any]:
    """Share of items whose answer begins with the documented sentence; the wrong ones are listed."""
    with ThreadPoolExecutor(parallel) as pool:
        answers = list(pool.map(lambda item: server.greedy_answer(ask(template, item)), items))
    wrong = [
        {"question": ask(template, item), "expected": item.answer, "answer": answer}
        for item, answer in zip(items, answers, strict=True)
        if not answers_rightly(answer, item)
    ]
    return {"phrasing": template, "asked": len(items), "right": len(items) - len(wrong), "wrong": wrong}


def measure_held_out(server: Server, library: Library, encoder: TextEncoder, parallel: int) -> dict[str, Any]:
    """Loss on the held-out files, per token and per byte."""
    windows = held_out_windows(library.held_out, encoder)
    with ThreadPoolExecutor(parallel) as pool:
        logprobs = list(pool.map(server.logprobs, windows))
    tokens = sum(map(len, logprobs))
    nats = -sum(map(sum, logprobs)) / tokens
    num_bytes = sum(len(file.text.encode()) for file in library.held_out)
    return {
        "files": len(library.held_out),
        "tokens": tokens,
        "nats_per_token": nats,
        "bits_per_byte": bits_per_byte(nats, tokens, num_bytes),
    }


def differences(record: dict[str, Any], library: Library) -> list[str]:
    """What makes this run differ from the recorded one, in words; empty where it does not."""
    found = []
    if record["python"] != python_name():
        found.append(f"this is {python_name()}, the model was trained on the library of {record['python']}")
    if record["held_out"]["files"] != [file.path for file in library.held_out]:
        found.append("the held-out files are not those of the training: the loss includes trained text")
    if record["items"] != len(library.items):
        found.append(f"{len(library.items)} documented names here, {record['items']} in the training")
    return found


@contextmanager
def own_server(port: int) -> Iterator[str]:
    """Starts Slipstream with the embedded model on `port`, gives its URL, and stops it."""
    command = [sys.executable, "-m", "slipstream.launch_server", "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def report(measured: dict[str, Any]) -> str:
    """The small table."""
    recall, held_out = measured["recall"], measured["held_out"]
    lines = [f"{'phrasing':40} {'right':>6} {'asked':>6}"]
    lines += [f"{r['phrasing']:40} {r['right']:6} {r['asked']:6}" for r in recall]
    lines.append("")
    lines.append(f"held-out source: {held_out['files']} files, {held_out['tokens']:,} tokens")
    lines.append(f"{held_out['nats_per_token']:.4f} nats per token, {held_out['bits_per_byte']:.4f} bits per byte")
    return "\n".join(lines)


def to_results(measured: dict[str, Any]) -> list[results.Result]:
    """The default phrasing's recall and the held-out loss as figures to keep, with the targets of this model."""
    recall, held_out = measured["recall"][0], measured["held_out"]
    figures = (
        (
            f"right first sentences, {recall['asked']} sampled questions",
            recall["right"] / recall["asked"],
            "of 1",
            ">= 0.95",
        ),
        (f"held-out source, {held_out['files']} files", held_out["nats_per_token"], "nats/token", "<= 2.6"),
        (f"held-out source per byte, {held_out['files']} files", held_out["bits_per_byte"], "bits/byte", None),
    )
    return [
        results.Result(
            date=results.today(),
            commit=results.current_commit(REPOSITORY),
            machine=results.this_machine(),
            command="scripts/eval_embedded.py --start --record",
            case=f"embedded model through the server: {case}",
            value=value,
            unit=unit,
            target=target,
        )
        for case, value, unit, target in figures
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:30000")
    parser.add_argument("--start", action="store_true", help="start and stop a server of its own on --port")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="folder with tekken.json and training.json")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--phrasing", action="append", help="with {n} for the name and {k} for its kind; repeatable")
    parser.add_argument("--parallel", type=int, default=8, help="requests in flight")
    parser.add_argument("--api-key", default=os.environ.get("SLIPSTREAM_API_KEY"))
    parser.add_argument("--timeout-s", type=float, default=300.0, help="for one request")
    parser.add_argument("--output-json", type=Path)
    parser.add_argument("--record", action="store_true", help="keep the figures in bench/results")
    args = parser.parse_args()

    record = json.loads((args.model / RECORD).read_text(encoding="utf-8"))
    library = read_library(record["seed"])
    differing = differences(record, library)
    for difference in differing:
        print(f"NOT COMPARABLE with the model card: {difference}", file=sys.stderr)
    if args.start:
        with own_server(args.port) as url:
            measured = run(Server(url, args.api_key, args.timeout_s), args, record, library)
    else:
        measured = run(Server(args.base_url, args.api_key, args.timeout_s), args, record, library)
    measured["differences"] = differing
    print(report(measured))
    if args.output_json:
        args.output_json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    if args.record:
        results.append(REPOSITORY / "bench" / "results" / "embedded.jsonl", to_results(measured))


def run(server: Server, args: argparse.Namespace, record: dict[str, Any], library: Library) -> dict[str, Any]:
    """Both measurements."""
    server.wait(STARTUP_SECONDS if args.start else 5)
    items = sampled_items(library.items, record["seed"], args.questions)
    phrasings = args.phrasing or [DEFAULT_PHRASING]
    recall = [measure_recall(server, items, phrasing, args.parallel) for phrasing in phrasings]
    encoder = TextEncoder(args.model / "tekken.json")
    return {"recall": recall, "held_out": measure_held_out(server, library, encoder, args.parallel)}


if __name__ == "__main__":
    main()
