"""Drafts that read the target's last hidden states: EAGLE (Li et al., arXiv 2401.15077) and EAGLE-2's trees."""

from slipstream.hf_transformers.spec import DrafterSpec
from slipstream.speculative.autoregressive import AutoRegressiveSpeculator
from slipstream.speculative.draft_model import require


class EagleSpeculator(AutoRegressiveSpeculator):
    """Row k joins the embedding of token k + 1 and the target's hidden state of token k after its final norm."""

    def check(self, spec: DrafterSpec) -> None:
        super().check(spec)
        require(spec, hidden_source="final_normed", successor_depth=1)
