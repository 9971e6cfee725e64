"""What the draw kernels know of each slot's sampling parameters."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SlotTables:
    """Sampling parameters of S slots on the device, read at each draw: a change holds from the next draw on."""

    temperature: Tensor  # fp32 [S]; 0: greedy
    keys: Tensor  # int64 [S]: the noise's slot keys, 64 bits each
    top_k: Tensor  # int64 [S]; 0: off
    top_p: Tensor  # fp32 [S]; 1: off
    min_p: Tensor  # fp32 [S]; 0: off
