"""Mixtral: Mistral's decoder with a mixture of experts for the feed-forward part."""

from slipstream.layers.moe import MixtureOfExperts, Router
from slipstream.layers.normed import Normed, NormedPart
from slipstream.models.layer_parts import LayerParts
from slipstream.models.mistral import Config, Decoder, MistralForCausalLM


class MixtralDecoder(Decoder):
    """With experts in every layer."""

    reads_on_host = True  # which experts have rows

    def make_mlp(self, config: Config, parts: LayerParts) -> NormedPart:
        router = Router(parts.parameters.tensor(parts.name("router")), config["num_experts_per_tok"])
        experts = MixtureOfExperts(router, parts.experts(config["num_local_experts"]))
        return Normed(parts.norm("mlp_norm"), experts)


class MixtralForCausalLM(MistralForCausalLM):
    """See CausalLM."""

    decoder_class = MixtralDecoder
