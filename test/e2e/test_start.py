"""Starts that must fail, quickly and with one clear message."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from slipstream.hf_transformers.embedded import embedded_path
from support.live_server import LiveServer


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    shutil.copytree(embedded_path(), tmp_path / "model")
    return tmp_path / "model"


def start(*flags: str) -> tuple[int, str]:
    """Exit code and output of a start that is expected to fail."""
    command = [sys.executable, "-m", "slipstream.launch_server", "--port", "0", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_folder_that_is_not_there() -> None:
    code, output = start("--model-path", "/nowhere/at/all")
    assert code == 1
    assert "/nowhere/at/all" in output
    assert "Traceback" not in output


def test_a_truncated_checkpoint(checkpoint: Path) -> None:
    weights = checkpoint / "consolidated.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    code, output = start("--model-path", str(checkpoint))
    assert code == 1
    assert "consolidated.safetensors" in output
    assert "Traceback" not in output


def test_a_mismatching_checkpoint_lists_every_problem(checkpoint: Path) -> None:
    params = json.loads((checkpoint / "params.json").read_text())
    params["n_layers"] += 1
    params["hidden_dim"] += 32
    (checkpoint / "params.json").write_text(json.dumps(params))
    code, output = start("--model-path", str(checkpoint))
    assert code == 1
    last = params["n_layers"] - 1
    assert f"layers.{last}.attention.wq.weight" in output or f"layers.{last}" in output
    assert "layers.0.feed_forward.w1.weight" in output or "feed_forward" in output
    assert "Traceback" not in output


def test_a_typo_in_params_names_the_key(checkpoint: Path) -> None:
    params = json.loads((checkpoint / "params.json").read_text())
    params["n_layer"] = params.pop("n_layers")
    (checkpoint / "params.json").write_text(json.dumps(params))
    code, output = start("--model-path", str(checkpoint))
    assert code == 1
    assert "n_layer" in output and "n_layers" in output


def test_a_port_in_use_names_the_flag() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, output = start("--port", str(taken.getsockname()[1]))
    assert code == 1
    assert "--port" in output and "in use" in output


def test_an_unknown_flag_names_the_nearest() -> None:
    code, output = start("--modle-path", "x")
    assert code == 2
    assert "did you mean --model-path?" in output


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--context-length", "999999"], "--context-length is 999999"),
        (["--max-total-tokens", "8"], "--page-size"),
        (["--max-running-requests", "0"], "--max-running-requests is 0"),
        (["--device", "cuda"], "--device"),
        (["--api-key", ""], "--api-key is empty"),
        (["--host", ""], "--host is empty"),
        (["--watchdog-timeout-s", "nan"], "--watchdog-timeout-s is nan"),
    ],
)
def test_values_that_cannot_work_are_named(flags: list[str], words: str) -> None:
    code, output = start(*flags)
    assert code == 1
    assert words in output
    assert "Traceback" not in output


def test_print_config_shows_values_reasons_and_no_secret() -> None:
    code, output = start("--print-config", "--api-key", "hunter2", "--context-length", "512")
    assert code == 0
    assert "--context-length" in output and "as given" in output
    assert "hunter2" not in output and "***" in output


def test_with_a_key_every_route_needs_it_but_the_probes() -> None:
    import httpx

    with LiveServer(environment={"SLIPSTREAM_API_KEY": "hunter2"}) as server:
        for path in ("/health", "/ready", "/metrics"):
            assert httpx.get(server.url + path, timeout=10).status_code == 200
        for path in ("/", "/v1/models", "/get_server_info", "/get_model_info", "/health_generate", "/nowhere"):
            assert httpx.get(server.url + path, timeout=10).status_code == 401, path
        for path in ("/generate", "/v1/chat/completions", "/flush_cache", "/abort_request", "/tokenize"):
            assert httpx.post(server.url + path, json={}, timeout=10).status_code == 401, path
        key = {"authorization": "Bearer hunter2"}
        info = httpx.get(server.url + "/get_server_info", headers=key, timeout=10)
        assert info.status_code == 200 and "hunter2" not in info.text
        assert "hunter2" not in server.output
