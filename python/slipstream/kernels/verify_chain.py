"""How many drafts of a chain stand, and what the slots' state becomes: the last kernels of a step that draw tokens."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from slipstream.kernels.launch import launch_options, let_next_start, wait_for_inputs
from slipstream.kernels.noise import child_key, uniform

MAX_ROWS = 64  # of a slot: its root and its drafts
SIMULATION_CHILD = tl.constexpr(-5)  # of a slot key: the root of Stream.SIMULATION (sampling/noise.py)

_BLOCK = 128


def verify_chain(
    drawn: Tensor,
    is_finite: Tensor,
    drafts: Tensor,
    slots: Tensor,
    max_accepted: Tensor,
    simulated: float | None,
    keys: Tensor,
    committed_len: Tensor,
    bonus: Tensor,
    dummy_slot: int,
) -> tuple[Tensor, Tensor]:
    """Accept drafts of B slots, at most max_accepted[b] of slot b, and commit them with the token after them.

    A draft stands if it is the token drawn at the row before it and all drafts before it stand (sampling/verify.py).
    simulated: acceptance length that is met on average instead, whatever was drawn (sampling/simulated.py).

    drawn: int64 [B, M], the token drawn at each row, M <= 64; is_finite: bool [B, M], of the row's logits. drafts:
    int64 [B, M - 1], valid ids also where a slot has fewer. slots: int64 [B], each once, but for dummy_slot.
    max_accepted: int32 [B], at most the slot's number of drafts. keys: int64 [S], the noise's slot keys.
    committed_len, bonus: int64 [S], updated, but not those of dummy_slot.

    Returns results int32 [B, M + 2] = [number of tokens, whether the logits of all accepted rows are finite, token
    ids], of which only so many count, and successors int64 [B, M]: the token after each row, any id after rows that are
    not accepted.
    """
    num_slots, width = drawn.shape
    assert width <= MAX_ROWS, f"{width} rows of a slot; at most {MAX_ROWS}"
    assert drafts.shape == (num_slots, width - 1) and is_finite.shape == drawn.shape
    assert slots.shape == max_accepted.shape == (num_slots,) and max_accepted.dtype == torch.int32
    assert all(of.dtype == torch.int64 for of in (drawn, drafts, slots, keys, committed_len, bonus))
    assert all(of.is_contiguous() for of in (drawn, is_finite, drafts, slots, max_accepted))
    mean = 0.0 if simulated is None else simulated - 1.0  # drafts
    results = torch.empty(num_slots, width + 2, dtype=torch.int32, device=drawn.device)
    successors = torch.empty_like(drawn)
    if num_slots:
        _verify_chain[(num_slots,)](
            drawn,
            is_finite.view(torch.int8),
            drafts,
            slots,
            max_accepted,
            keys,
            committed_len,
            bonus,
            results,
            successors,
            width,
            math.floor(mean),
            mean - math.floor(mean),
            dummy_slot,
            IS_SIMULATED=simulated is not None,
            MAX_ROWS=MAX_ROWS,
            num_warps=1,
            **launch_options(drawn.device),
        )
    return results, successors


def commit_chunks(
    drawn: Tensor,
    is_finite: Tensor,
    slots: Tensor,
    ends: Tensor,
    samples: Tensor,
    committed_len: Tensor,
    bonus: Tensor,
    dummy_slot: int,
) -> Tensor:
    """Commit R prefill chunks: committed_len[slots[r]] becomes ends[r], and bonus[slots[r]] drawn[r] if samples[r].

    drawn, slots, ends: int64 [R]; is_finite, samples: bool [R]; committed_len, bonus: int64 [S]. Nothing of dummy_slot
    changes. Returns int32 [R, 3] = [1 or 0 tokens, whether the logits are finite, token id].
    """
    count = len(drawn)
    assert slots.shape == ends.shape == samples.shape == is_finite.shape == drawn.shape == (count,)
    assert all(of.dtype == torch.int64 for of in (drawn, slots, ends, committed_len, bonus))
    assert is_finite.dtype == samples.dtype == torch.bool
    assert all(of.is_contiguous() for of in (drawn, is_finite, slots, ends, samples))
    results = torch.empty(count, 3, dtype=torch.int32, device=drawn.device)
    if count:
        _commit_chunks[(triton.cdiv(count, _BLOCK),)](
            drawn,
            is_finite.view(torch.int8),
            slots,
            ends,
            samples.view(torch.int8),
            committed_len,
            bonus,
            results,
            count,
            dummy_slot,
            BLOCK=_BLOCK,
            num_warps=4,
            **launch_options(drawn.device),
        )
    return results


@triton.jit(
    do_not_specialize=["width", "whole", "fraction", "dummy_slot"],
    do_not_specialize_on_alignment=["drawn", "is_finite", "drafts", "slots", "max_accepted", "committed_len", "bonus"],
)
def _verify_chain(  # type: ignore[no-untyped-def]
    drawn,
    is_finite,
    drafts,
    slots,
    max_accepted,
    keys,
    committed_len,
    bonus,
    results,
    successors,
    width,
    whole,
    fraction,
    dummy_slot,
    IS_SIMULATED: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program for each slot."""
    let_next_start(PDL)
    of = tl.program_id(0)
    rows = tl.arange(0, MAX_ROWS)
    has_draft = rows < width - 1
    wait_for_inputs(PDL)
    slot = tl.load(slots + of)
    length = tl.load(committed_len + slot)
    tokens = tl.load(drawn + of * width + rows, rows < width, other=0)
    drafted = tl.load(drafts + of * (width - 1) + rows, has_draft, other=0)
    finite = tl.load(is_finite + of * width + rows, rows < width, other=1).to(tl.int32)
    if IS_SIMULATED:
        key = child_key(child_key(tl.load(keys + slot), _index(SIMULATION_CHILD)), length + 1)
        stand = whole + (uniform(child_key(key, _index(0))) < fraction).to(tl.int32)
    else:
        stand = tl.min(tl.where(has_draft & (drafted == tokens), MAX_ROWS, rows), 0)  # the first row without
    accepted = tl.minimum(tl.minimum(stand, width - 1), tl.load(max_accepted + of))
    tokens = tl.where(rows < accepted, drafted, tokens)
    all_finite = tl.min(tl.where(rows <= accepted, finite, 1), 0)
    into = results + of * (width + 2)
    tl.store(into, accepted + 1)
    tl.store(into + 1, all_finite)
    tl.store(into + 2 + rows, tokens.to(tl.int32), rows < width)
    tl.store(successors + of * width + rows, tokens, rows < width)
    if slot != dummy_slot:
        tl.store(committed_len + slot, length + accepted + 1)
        tl.store(bonus + slot, tl.sum(tl.where(rows == accepted, tokens, 0), 0))


@triton.jit
def _index(value: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.full((), value, tl.int64)


@triton.jit(
    do_not_specialize=["count", "dummy_slot"],
    do_not_specialize_on_alignment=["drawn", "is_finite", "slots", "ends", "samples", "committed_len", "bonus"],
)
def _commit_chunks(  # type: ignore[no-untyped-def]
    drawn,
    is_finite,
    slots,
    ends,
    samples,
    committed_len,
    bonus,
    results,
    count,
    dummy_slot,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program for BLOCK chunks."""
    let_next_start(PDL)
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < count
    wait_for_inputs(PDL)
    slot = tl.load(slots + rows, inside, other=0)
    token = tl.load(drawn + rows, inside, other=0)
    has_token = tl.load(samples + rows, inside, other=0) != 0
    finite = tl.load(is_finite + rows, inside, other=0) != 0
    is_real = inside & (slot != dummy_slot)
    tl.store(committed_len + slot, tl.load(ends + rows, inside, other=0), is_real)
    tl.store(bonus + slot, token, is_real & has_token)
    tl.store(results + rows * 3, has_token.to(tl.int32), inside)
    tl.store(results + rows * 3 + 1, finite.to(tl.int32), inside)
    tl.store(results + rows * 3 + 2, token.to(tl.int32), inside)
