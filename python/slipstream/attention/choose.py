"""Which backend serves a target and its draft."""

from collections.abc import Sequence

import torch

from slipstream.attention.base import AttentionBackend
from slipstream.attention.layer import AttentionLayer
from slipstream.attention.registry import ATTENTION_BACKENDS
from slipstream.config.flags import AUTO
from slipstream.errors import ConfigError

_FASTEST_FIRST = ("flashinfer", "triton", "torch_native")


def choose_backend(
    name: str, models: Sequence[tuple[Sequence[AttentionLayer], torch.dtype]], device: torch.device
) -> tuple[str, type[AttentionBackend], str]:
    """(its name, its class, why) for `models`: the layers and the dtype of each.

    "auto" takes the fastest that supports all of them. Raises ConfigError for a name that does not.
    """
    refusals: list[str] = []
    for candidate in _FASTEST_FIRST if name == AUTO else (name,):
        try:
            backend = ATTENTION_BACKENDS.get(candidate)
        except ImportError as error:
            refusals.append(f"{candidate} needs {error.name}, which is not installed")
            continue
        problem = next(
            (found for layers, dtype in models if (found := backend.supports(layers, dtype, device)) is not None), None
        )
        if problem is None:
            fastest = "; ".join(refusals) or "the fastest that supports the model"
            return candidate, backend, fastest if name == AUTO else "as given"
        refusals.append(f"{candidate} {problem}")
    raise ConfigError(f"--attention-backend {name}: {'; '.join(refusals)}; choose another")
