"""Gumbel noise keyed by (request seed, choice index, position) for each vocabulary id.

argmax(logits + g) with independent standard Gumbel g draws from softmax(logits) (Gumbel-max: Maddison, Tarlow and
Minka, "A* Sampling", arXiv 1411.0030, section 2). The noise is a pure function of its key, so a draw depends neither on
the batch, nor on the order of steps, nor on which other ids are looked at.

The hash is SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014) used as a
tree: child i of a key is output i of the generator seeded with that key, mix64(key + (i + 1) * GOLDEN) modulo 2**64.

    seed --choice--> slot key --position--> row key --vocabulary id--> 64 bits, of which the upper 32 are used

That is the stream of the target's draws. What else is random at a position has a stream of its own, which hangs on a
child of the slot key that no position uses: slot key --(-2 - stream)--> stream key --position--> row key, and so on.

Tensors hold the 64 bits as int64: sums and products wrap, and a logical shift is an arithmetic one with the copies of
the sign masked off.
"""

from collections.abc import Sequence
from enum import IntEnum

import torch

GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
LARGEST_UNIFORM = 1.0 - 2.0**-24  # the largest fp32 below 1: keeps log1p(-u) finite
CPU_BLOCK_ELEMENTS = 2**17  # temporaries of one block stay in the cache
DEVICE_BLOCK_ELEMENTS = 2**22  # bounds the temporaries to 100 MB


class Stream(IntEnum):
    """What the noise at a position is for. Different streams are independent of each other."""

    TARGET = 0  # the target's draw
    DRAFT = 1  # a draft's own draw, for rejection sampling
    ACCEPT = 2  # the coin that accepts a draft or not
    SIMULATION = 3  # the coin of simulated acceptance


def signed(value: int) -> int:
    """The int64 with the same lower 64 bits as `value`."""
    return ((value + 2**63) & (2**64 - 1)) - 2**63


def xor_shift_(bits: torch.Tensor, count: int) -> torch.Tensor:
    """bits ^= bits >> count, with a logical shift. In place."""
    high = bits >> count
    high &= (1 << (64 - count)) - 1
    bits ^= high
    return bits


def mix64_(bits: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser on int64 `bits` of any shape. In place."""
    xor_shift_(bits, 30).mul_(signed(MIX_1))
    xor_shift_(bits, 27).mul_(signed(MIX_2))
    return xor_shift_(bits, 31)


def child_keys(keys: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Child `index` of each key; both int64 and broadcast against each other."""
    return mix64_(keys + (index + 1) * signed(GOLDEN))


def child_key(key: int, index: int) -> int:
    """child_keys() of one key, on the host. Any integers will do; they count modulo 2**64.

    >>> child_key(1234567, 0)
    6457827717110365317
    """
    bits = (key + (index + 1) * GOLDEN) % 2**64
    bits = (bits ^ (bits >> 30)) * MIX_1 % 2**64
    bits = (bits ^ (bits >> 27)) * MIX_2 % 2**64
    return signed(bits ^ (bits >> 31))


def uniforms(bits: torch.Tensor) -> torch.Tensor:
    """fp32 in [2**-33, 1 - 2**-24] from the upper 32 of 64 bits: (n + 1/2) / 2**32, rounded to fp32.

    Rounding is relative, so the small values, which make the large Gumbels, keep their 32-bit resolution.
    """
    upper = (bits >> 32).bitwise_and_(2**32 - 1)
    return upper.to(torch.float32).add_(0.5).mul_(2.0**-32).clamp_(max=LARGEST_UNIFORM)


def gumbel(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise -log(E), E = -log1p(-u), always in [-2.9, 22.9].

    keys: [rows] int64 row keys. ids: [n] or [rows, n] int64. Returns [rows, n] fp32.
    """
    exponentials = uniforms(child_keys(keys[:, None], ids)).neg_().log1p_().neg_()
    return exponentials.log_().neg_()


class Noise:
    """One key for each slot: [num_slots] int64 on the device."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self.keys = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._ids = torch.arange(vocab_size, dtype=torch.int64, device=device)
        elements = CPU_BLOCK_ELEMENTS if device.type == "cpu" else DEVICE_BLOCK_ELEMENTS
        self._block_rows = max(1, elements // vocab_size)

    def add(self, slot: int, seed: int, choice: int) -> None:
        """Key the slot. Any integer seed will do; it counts modulo 2**64."""
        self.keys[slot].fill_(child_key(seed, choice))

    def row_keys(
        self, slots: Sequence[int], positions: Sequence[int] | torch.Tensor, stream: Stream = Stream.TARGET
    ) -> torch.Tensor:
        """[rows] int64 for gumbel(). `positions` are the absolute positions of the tokens to draw."""
        device = self.keys.device
        keys = self.keys[torch.tensor(slots, dtype=torch.int64, device=device)]
        if stream != Stream.TARGET:
            keys = child_keys(keys, torch.tensor(-2 - stream, device=device))
        return child_keys(keys, torch.as_tensor(positions, dtype=torch.int64, device=device))

    def apply(
        self,
        logits: torch.Tensor,
        slots: Sequence[int],
        positions: Sequence[int] | torch.Tensor,
        stream: Stream = Stream.TARGET,
    ) -> None:
        """Add the noise to `logits` [rows, vocab] fp32, in place."""
        keys = self.row_keys(slots, positions, stream)
        for start in range(0, len(logits), self._block_rows):
            block = slice(start, start + self._block_rows)
            logits[block] += gumbel(keys[block], self._ids)

    def coins(self, slots: Sequence[int], positions: Sequence[int] | torch.Tensor, stream: Stream) -> torch.Tensor:
        """One number for each row, uniform in (0, 1): [rows] fp32."""
        keys = self.row_keys(slots, positions, stream)
        return uniforms(child_keys(keys, torch.zeros_like(keys)))
