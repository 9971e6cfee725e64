"""The attention backends by the name that --attention-backend takes."""

from slipstream.attention.base import AttentionBackend
from slipstream.attention.torch_native import TorchNativeAttention
from slipstream.registry import Registry

ATTENTION_BACKENDS: Registry[type[AttentionBackend]] = Registry("attention backend")
ATTENTION_BACKENDS.register("torch_native")(TorchNativeAttention)
