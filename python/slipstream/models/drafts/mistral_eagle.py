"""Mistral's EAGLE draft for a dense target (Medium 3.5): its own few layers behind a fusion of two vectors."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from slipstream.attention.base import AttentionBackend
from slipstream.layers.linear import make_linear
from slipstream.models.drafts.base import DraftOutput
from slipstream.models.drafts.mistral_eagle_tables import DRAFT
from slipstream.models.mistral import Decoder
from slipstream.weights.parameters import Parameters


class MistralForCausalLMEagle:
    """See DraftModel. norm(layers(eagle_linear([embedding; hidden state]))) is both what the head reads and what the
    next row takes (EAGLE: Li et al., 2024, section 3.1; here the first layer has its attention norm, and there is a
    final norm, with which DrafterSpec.norms agrees).

    Inside, activations have the draft's own dtype, which need not be the target's.
    """

    decoder_class: type[Decoder] = Decoder
    norms: Mapping[str, bool] = MappingProxyType(
        {
            "embedding_norm": False,
            "hidden_norm": False,
            "first_attention_norm": True,
            "final_norm": True,
            "feedback_normed": True,
        }
    )

    def __init__(self, config: Mapping[str, Any], parameters: Parameters, device: torch.device) -> None:
        self.reads_on_host = self.decoder_class.reads_on_host
        self.dtype = parameters.dtype
        self.fusion = make_linear(parameters.matrix(f"{DRAFT}eagle_linear"))
        self.decoder = self.decoder_class(config, parameters, device, DRAFT)

    def forward(self, x: Tensor, hidden: Tensor, positions: Tensor, attention: AttentionBackend) -> DraftOutput:
        """Both outputs have the dtype of `x`, the target's."""
        fused = self.fusion(torch.cat((x, hidden), -1).to(self.dtype))
        out = self.decoder.forward(fused, positions, attention).to(x.dtype)
        return DraftOutput(out, out)
