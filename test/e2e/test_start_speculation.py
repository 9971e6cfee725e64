"""Starts with a draft: pairs that must be refused, the verdict, and that nothing of the canned run is left."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from slipstream.engine import Engine
from slipstream.errors import CheckpointError
from slipstream.hf_transformers.embedded import embedded_path
from support.draft_checkpoints import write_draft
from support.live_server import LiveServer

PARAMS: dict[str, Any] = json.loads((embedded_path() / "params.json").read_text())


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hardly any of its drafts is accepted."""
    return write_draft(tmp_path_factory.mktemp("pair") / "draft", PARAMS, num_layers=1)


@pytest.fixture(scope="module")
def misfit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_draft(tmp_path_factory.mktemp("pair") / "misfit", PARAMS | {"vocab_size": 100}, head_dim=32)


def start(*flags: str) -> tuple[int, str]:
    """Exit code and output of a start that is expected to end."""
    command = [sys.executable, "-m", "slipstream.launch_server", "--port", "0", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_misfit_is_refused_before_loading(misfit: Path) -> None:
    code, output = start("--speculative-draft-model-path", str(misfit))
    assert code == 1
    assert "vocabulary size is 100" in output and "head size is 32" in output
    assert "Traceback" not in output and "loading" not in output
    with pytest.raises(CheckpointError, match="vocabulary size is 100"):
        Engine(speculative_draft_model_path=str(misfit))


def test_print_config_shows_what_one_flag_comes_to(draft: Path) -> None:
    code, output = start("--print-config", "--speculative-draft-model", str(draft))
    assert code == 0
    values = {line.split()[0]: line.split()[1] for line in output.splitlines()}
    assert values["--speculative-algorithm"] == "EAGLE" and values["--speculative-num-steps"] == "3"
    assert values["--speculative-draft-model-path"] == str(draft) and values["--speculative-adaptive"] == "on"


def test_an_algorithm_of_others_is_refused() -> None:
    code, output = start("--speculative-algorithm", "EAGLE3")
    assert code == 2 and "EAGLE-3 drafts are not supported" in output


def test_the_verdict_and_no_trace_of_the_canned_run(draft: Path) -> None:
    with LiveServer("--speculative-draft-model-path", str(draft), "--dtype", "float32") as server:
        metrics = httpx.get(server.url + "/metrics", timeout=10).text
        info = httpx.get(server.url + "/get_server_info", timeout=10).json()
        idle = server.wait_for_status(num_running=0, num_pages_cached=0)
        output = server.output
    length = re.search(r"speculation: EAGLE \(mistral_eagle\), K = 3, warm-up acceptance length ([0-9.]+)", output)
    assert length is not None and 1.0 <= float(length[1]) < 1.1
    assert "warning: drafts are hardly ever accepted" in output and "--speculative-algorithm none" in output
    assert output.index("speculation: EAGLE") < output.index("ready in")
    counted = [line for line in metrics.splitlines() if re.match(r"\w+(_total|_count|_sum)(\{|\s)", line)]
    assert counted and [line for line in counted if float(line.split()[-1]) != 0] == []
    assert (info["speculative_algorithm"], info["speculative_num_steps"], info["phase"]) == ("EAGLE", 3, "ready")
    assert idle["num_pages_free"] == idle["num_pages"]


def test_sglang_s_flags_and_simulated_acceptance(draft: Path) -> None:
    flags = ("--speculative-algorithm", "EAGLE", "--speculative-draft-model-path", str(draft),
             "--speculative-num-steps", "5", "--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", "6",
             "--simulate-acceptance-length", "4", "--dtype", "float32")  # fmt: skip
    with LiveServer(*flags) as server:
        output = server.output
    length = re.search(r"EAGLE \(mistral_eagle\), K = 5, warm-up acceptance length ([0-9.]+), simulated", output)
    assert length is not None and float(length[1]) == pytest.approx(4, abs=0.4)
    assert "answers are wrong" in output and "hardly ever" not in output
