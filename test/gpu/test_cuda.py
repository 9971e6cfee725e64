"""The same engine on a CUDA device: the CPU path is the reference."""

from pathlib import Path

import httpx
import pytest

from slipstream import Engine
from slipstream.errors import ConfigError, WorkerDied
from slipstream.worker.device_worker import DeviceWorker
from support.gpu_models import write_gpu_pair
from support.live_server import MODEL, LiveServer
from support.moe_checkpoints import MLA_PARAMS, native_moe_tensors, reference_mistral4, write_params
from support.running_worker import load_worker

pytestmark = pytest.mark.gpu

GREEDY = {"max_new_tokens": 32, "temperature": 0, "ignore_eos": True}
SEEDED = {"max_new_tokens": 32, "temperature": 1.0, "sampling_seed": 5, "top_p": 0.9, "top_k": 50, "ignore_eos": True}
PROMPTS = ["import os\n", "def main():\n", "class Stack:\n", "for line in sys.stdin:\n", '"""Parse'] * 4


def answers(**options: object) -> list[list[list[int]]]:
    with Engine(dtype="float32", random_seed=1, **options) as engine:
        return [[answer.token_ids for answer in engine.generate(PROMPTS, params)] for params in (GREEDY, SEEDED)]


def test_fp32_gives_the_tokens_of_the_cpu() -> None:
    assert answers(device="cuda") == answers(device="cpu")


def test_bf16_answers_the_question_over_http() -> None:
    with LiveServer("--device", "cuda") as server:
        body = {"model": MODEL, "temperature": 0, "messages": [{"role": "user", "content": "What does os.getcwd do?"}]}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
        assert "current working directory" in answer["choices"][0]["message"]["content"]
        assert httpx.get(f"{server.url}/get_server_info").json()["scheduler"]["worker"]["device"].startswith("cuda")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpu_pair(tmp_path_factory.mktemp("dense"))[0]


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_params(tmp_path_factory.mktemp("latent"), MLA_PARAMS, native_moe_tensors(reference_mistral4()))


def test_a_backend_that_lacks_the_dtype_is_refused() -> None:
    with pytest.raises(WorkerDied, match=r"--attention-backend flashinfer.*takes bfloat16 and float16, not float32"):
        Engine(device="cuda", dtype="float32", attention_backend="flashinfer")


def test_a_backend_that_lacks_latent_attention_is_refused(latent: Path) -> None:
    with pytest.raises(ConfigError, match=r"--attention-backend triton.*has no latent attention \(MLA\)"):
        load_worker(latent, device="cuda", attention_backend="triton")


def test_auto_takes_what_the_model_can_have(dense: Path, latent: Path) -> None:
    info = load_worker(dense, device="cuda", attention_backend="auto").ready.info
    assert info["attention_backend"] == "triton"
    assert "flashinfer takes bfloat16" in info["attention_backend_reason"]
    worker = load_worker(latent, device="cuda", attention_backend="auto")
    assert worker.ready.info["attention_backend"] == "torch_native"
    assert "triton has no latent attention" in worker.ready.info["attention_backend_reason"]
    assert not isinstance(worker, DeviceWorker)
