"""The attention backends by the name that --attention-backend takes."""

from slipstream.attention.base import AttentionBackend
from slipstream.attention.torch_native import TorchNativeAttention
from slipstream.registry import Registry

ATTENTION_BACKENDS: Registry[type[AttentionBackend]] = Registry("attention backend")
ATTENTION_BACKENDS.register("torch_native")(TorchNativeAttention)


@ATTENTION_BACKENDS.register_loader("triton")
def _load_triton() -> type[AttentionBackend]:
    from slipstream.attention.triton import TritonAttention

    return TritonAttention


@ATTENTION_BACKENDS.register_loader("flashinfer")
def _load_flashinfer() -> type[AttentionBackend]:
    from slipstream.attention.flashinfer import FlashInferAttention

    return FlashInferAttention
