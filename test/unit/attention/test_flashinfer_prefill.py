"""What FlashInfer's prefill needs and takes, as far as a machine without a GPU can tell. Its numbers: test/gpu."""

from dataclasses import replace

import pytest
import torch

from slipstream.attention import flashinfer_prefill
from slipstream.attention.flashinfer_prefill import FlashInferPrefill
from slipstream.attention.layer import AttentionLayer

LAYER = AttentionLayer(num_heads=32, num_kv_heads=8, head_dim=128, scale=0.1)
CUDA = torch.device("cuda")
BF16 = torch.bfloat16


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hopper with FlashInfer and a compiler."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(flashinfer_prefill, "find_spec", lambda name: object() if name == "flashinfer" else None)
    monkeypatch.setattr(flashinfer_prefill.shutil, "which", lambda name: f"/bin/{name}")


@pytest.mark.usefixtures("hopper")
def test_says_what_it_cannot_do() -> None:
    available = FlashInferPrefill.available
    assert available([LAYER, replace(LAYER, head_dim=64, window=100)], BF16, CUDA) is None
    assert "CUDA" in str(available([LAYER], BF16, torch.device("cpu")))
    assert "float32" in str(available([LAYER], torch.float32, CUDA))
    assert "80" in str(available([LAYER, replace(LAYER, head_dim=80)], BF16, CUDA))
    assert "latent" in str(available([replace(LAYER, num_kv_heads=1, latent_dim=64)], BF16, CUDA))


@pytest.mark.usefixtures("hopper")
def test_says_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flashinfer_prefill.shutil, "which", lambda name: None if name == "ninja" else "/bin/nvcc")
    assert "ninja" in str(FlashInferPrefill.available([LAYER], BF16, CUDA))
    monkeypatch.setattr(flashinfer_prefill, "find_spec", lambda name: object())  # with compiled kernels
    assert FlashInferPrefill.available([LAYER], BF16, CUDA) is None
    monkeypatch.setattr(flashinfer_prefill, "find_spec", lambda name: None)
    assert "pip install flashinfer-python" in str(FlashInferPrefill.available([LAYER], BF16, CUDA))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "7.5" in str(FlashInferPrefill.available([LAYER], BF16, CUDA))


def test_workspace_grows_with_the_kinds_of_layers() -> None:
    one = FlashInferPrefill.workspace_bytes([LAYER] * 32)
    assert one == FlashInferPrefill.workspace_bytes()
    assert one < FlashInferPrefill.workspace_bytes([LAYER, replace(LAYER, scale=0.2)]) < 2 * one
    assert one < 64 * 2**20
