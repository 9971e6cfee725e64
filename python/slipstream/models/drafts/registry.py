"""The draft models by DrafterSpec.architecture."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from slipstream.models.drafts.base import DraftModel
from slipstream.models.drafts.mistral_eagle import MistralForCausalLMEagle
from slipstream.models.drafts.mistral_large3_eagle import MistralLarge3ForCausalLMEagle
from slipstream.registry import Registry
from slipstream.weights.parameters import Parameters

BuildDraft = Callable[[Mapping[str, Any], Parameters, torch.device], DraftModel]  # the constructor of a DraftModel

DRAFT_MODELS: Registry[BuildDraft] = Registry("draft architecture")
DRAFT_MODELS.register("MistralForCausalLMEagle")(MistralForCausalLMEagle)
DRAFT_MODELS.register("MistralLarge3ForCausalLMEagle")(MistralLarge3ForCausalLMEagle)
