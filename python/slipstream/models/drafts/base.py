"""What a speculator asks of a draft model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from slipstream.attention.base import AttentionBackend
from slipstream.weights.parameters import Parameters


@dataclass(frozen=True)
class DraftOutput:
    """Two views of a draft's last hidden states, both [T, D]; for some drafts they are the same tensor."""

    logits_hidden: Tensor  # what the head reads
    feedback_hidden: Tensor  # what the next row takes in the place of the target's hidden state

    def rows(self, index: Tensor) -> "DraftOutput":
        """Those of the rows `index`, int64 [n]."""
        logits_hidden = self.logits_hidden.index_select(0, index)
        if self.feedback_hidden is self.logits_hidden:
            return DraftOutput(logits_hidden, logits_hidden)
        return DraftOutput(logits_hidden, self.feedback_hidden.index_select(0, index))

    def put(self, index: Tensor, rows: "DraftOutput") -> None:
        """Row index[i] becomes row i of `rows`."""
        self.logits_hidden.index_copy_(0, index, rows.logits_hidden)
        self.feedback_hidden.index_copy_(0, index, rows.feedback_hidden)


class DraftModel(Protocol):
    """A small decoder beside a target. `config` is DrafterSpec.config; nothing of the target's is read or changed."""

    reads_on_host: bool  # see CausalLM

    @property
    def norms(self) -> Mapping[str, bool]:
        """The norms that it has, as DrafterSpec.norms names them: a draft that wants others is not for this class."""
        ...

    def __init__(self, config: Mapping[str, Any], parameters: Parameters, device: torch.device) -> None:
        """`parameters` are those of the draft architecture's ModelTables."""

    def forward(self, x: Tensor, hidden: Tensor, positions: Tensor, attention: AttentionBackend) -> DraftOutput:
        """`x` [T, D] are embedded tokens, `hidden` [T, D] the hidden states of the tokens before them: the target's, or
        the draft's own feedback. `positions` int64 [T] are those of the hidden states. `attention` is planned for these
        rows. Both outputs have the dtype of `x`, the target's; inside, activations have the draft's own.
        """
        ...
