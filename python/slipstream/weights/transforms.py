"""Changes of layout between a checkpoint tensor and a parameter."""

from torch import Tensor

from slipstream.weights.name_map import Placement


def apply_transform(tensor: Tensor, placement: Placement) -> Tensor:
    """The tensor as the parameter holds it; same shape and dtype."""
    if placement.transform == "interleaved_to_half":
        return interleaved_to_half(tensor, placement.head_dim)
    return tensor


def interleaved_to_half(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of a query or key projection [num_heads * head_dim, columns] inside each head.

    Mistral's files pair rows (2i, 2i + 1) of a head for rotation, transformers' files rows (i, i + head_dim / 2).
    Attention scores do not depend on the order of a head's values as long as queries and keys share it, so the rows
    are brought into the second order here, once, and one rotation serves both layouts.
    For head_dim 4 the rows 0 1 2 3 become 0 2 1 3.
    """
    rows, *columns = weight.shape
    return weight.view(rows // head_dim, head_dim // 2, 2, *columns).transpose(1, 2).reshape(weight.shape)
