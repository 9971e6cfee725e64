"""A language model with a vision encoder in front."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from slipstream.attention.base import AttentionBackend
from slipstream.models.base import CausalLM, ImageEncoder, ImageRows
from slipstream.models.pixtral import PixtralEncoder
from slipstream.weights.parameters import Parameters

Config = Mapping[str, Any]
BuildModel = Callable[[Config, Parameters, torch.device], CausalLM]  # the constructor of a CausalLM


class Mistral3ForConditionalGeneration:
    """See CausalLM. `models` finds the language model's class by config["text_architecture"]."""

    def __init__(
        self,
        models: Callable[[str], BuildModel],
        config: Config,
        parameters: Parameters,
        device: torch.device,
    ) -> None:
        build = models(config["text_architecture"])
        self.text = build(config["text_config"], parameters, device)
        self.reads_on_host = self.text.reads_on_host
        self.image_encoder: ImageEncoder | None = PixtralEncoder(config, parameters, device)

    def embed(self, token_ids: Tensor, images: ImageRows | None = None) -> Tensor:
        return self.text.embed(token_ids, images)

    def forward(
        self, x: Tensor, positions: Tensor, attention: AttentionBackend, kept_rows: Tensor | None = None
    ) -> Tensor:
        return self.text.forward(x, positions, attention, kept_rows)

    def compute_logits(self, hidden: Tensor, *, widen: bool = True) -> Tensor:
        return self.text.compute_logits(hidden, widen=widen)
