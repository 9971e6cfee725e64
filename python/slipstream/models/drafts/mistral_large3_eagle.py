"""Mistral's EAGLE draft with latent attention: dense for Small 4, with experts for Large 3."""

from slipstream.models.drafts.mistral_eagle import MistralForCausalLMEagle
from slipstream.models.mistral4 import LatentDecoder


class MistralLarge3ForCausalLMEagle(MistralForCausalLMEagle):
    """See DraftModel."""

    decoder_class = LatentDecoder
