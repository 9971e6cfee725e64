"""Token embedding and the output head."""

import torch.nn.functional as F
from torch import Tensor

from slipstream.layers.dense import make_dense


class Embedding:
    """Rows of a table [vocab, D]."""

    __slots__ = ("weight",)

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, token_ids: Tensor) -> Tensor:
        """[T] int64 -> [T, D]."""
        return F.embedding(token_ids, self.weight)


class Head:
    """Logits over the vocabulary; `weight` [vocab, D] is the embedding's where the model ties them."""

    __slots__ = ("_product",)

    def __init__(self, weight: Tensor) -> None:
        self._product = make_dense(weight)

    def __call__(self, hidden: Tensor, *, widen: bool = True) -> Tensor:
        """[rows, D] -> [rows, vocab]. The product has the weights' dtype and accumulates in fp32; `widen` makes fp32 of
        its result.
        """
        logits = self._product(hidden)
        return logits.float() if widen else logits
