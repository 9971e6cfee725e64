"""Which positions the rows of decode requests attend to, for rows and positions that are padded to one number."""

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_mask(positions: Tensor, rows: Tensor, window: int | None) -> Tensor:
    """bool [B, M, L]: the row at position rows[b, m] sees positions[b, l] up to its own, or the last `window` of these.

    Both are int64: positions [B, L] and rows [B, M].
    """
    distances = rows.unsqueeze(2) - positions.unsqueeze(1)
    visible = distances >= 0
    return visible if window is None else visible.logical_and_(distances < window)


def tree_mask(visible: Tensor, nodes: Tensor, window: int | None) -> Tensor:
    """The same where a row attends to its ancestors in a tree and to all that lies before it.

    `visible` is bool [B, M, number of nodes], see Tree; `nodes`, int64 [B, L], are positions counted from the tree's
    start. Parents come before their children, so that counting what a row sees gives its ancestors' distances.
    """
    counts = visible.cumsum(2)
    num_seen = counts[:, :, -1:]  # the row's distance from the root, plus 1
    nodes = nodes.unsqueeze(1)
    before = nodes < 0
    if window is not None:
        before = before & (num_seen - 1 - nodes < window)
        visible = visible & (num_seen - counts < window)
    no_node = visible.shape[2]
    columns = nodes.clamp(0, no_node).expand(-1, visible.shape[1], -1)
    return torch.where(nodes < 0, before, F.pad(visible, (0, 1)).gather(2, columns))
