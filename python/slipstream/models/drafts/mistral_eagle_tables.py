"""Parameters, names and attention layers of Mistral's EAGLE drafts. No torch here.

A decoder without embedding and head, which are the target's, behind `eagle_linear`, which turns a token's embedding
and the target's hidden state before it, side by side, into one row of the usual width. The first layer keeps its
attention_norm, and the final norm is applied. The decoder is dense with grouped-query attention (Medium 3.5's draft),
or has latent attention, dense (Small 4's) or with experts (Large 3's).
Our names of parameters begin with "draft.", so that the target's can stand beside them; those in files do not.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from slipstream.attention.layer import AttentionLayer
from slipstream.models.model_tables import ModelTables
from slipstream.weights.name_map import NameMap, ParameterShape, Rule

Config = Mapping[str, Any]
DRAFT = "draft."  # begins the names of all parameters
_OF_THE_TARGET = ("embedding", "head")


class MistralEagleTables:
    """See ModelTables. `decoder` has the tables of a target with such a decoder."""

    layouts: tuple[str, ...] = ("mistral",)

    def __init__(self, decoder: ModelTables) -> None:
        self._decoder = decoder

    def attention_layers(self, config: Config) -> tuple[AttentionLayer, ...]:
        return self._decoder.attention_layers(config)

    def parameter_shapes(self, config: Config) -> dict[str, ParameterShape]:
        """Columns [0, D) of eagle_linear [D, 2 D] take the embedding, the others the hidden state."""
        dim, decoder = config["hidden_size"], self._decoder.parameter_shapes(config)
        return {
            f"{DRAFT}eagle_linear": ParameterShape((dim, 2 * dim), quantizable=True, shard="columns"),
            **{DRAFT + name: shape for name, shape in decoder.items() if name not in _OF_THE_TARGET},
        }

    def name_map(self, config: Config, layout: str) -> NameMap:
        """Drafts of this kind exist only in Mistral's own layout."""
        assert layout == "mistral", layout
        decoder = self._decoder.name_map(config, layout)
        own = (rule for rule in decoder.rules if rule.parameter not in _OF_THE_TARGET)
        rules = (replace(rule, parameter=DRAFT + rule.parameter) for rule in own)
        return NameMap((Rule("eagle_linear.weight", f"{DRAFT}eagle_linear"), *rules), decoder.ignored)
