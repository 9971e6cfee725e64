"""One token for each row of logits: argmax(logits / temperature, filtered, + keyed Gumbel noise), without a sort.

The rule and its order are those of the plain-torch Sampler (sampling/sampler.py, filters.py, noise.py), which is the
reference that the tests compare with, for slots without penalties, bias and minimal lengths. Three kernels:

1. `_scan` finds the maximum of each block of ids, and what is not finite.
2. `_settle`, one program for each row: a greedy row has its token. For the others, the least score that top-k, top-p
   and min-p keep. It is found by counting what lies above a few pivots, again and again.
3. `_add_noise` draws: argmax over what is kept of score + noise. The last program of a row to finish puts the blocks
   together.

A score is (logit - maximum) / temperature, at most 0. No result depends on the other rows, nor on the block sizes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from slipstream.kernels.filters import least_kept
from slipstream.kernels.launch import launch_options, let_next_start, wait_for_inputs
from slipstream.kernels.noise import child_key, gumbel
from slipstream.kernels.slot_tables import SlotTables

SETTLED = tl.constexpr(1.0)  # in place of a least score: the row has its token

_SEARCH_BLOCK = 4096  # ids that one program of _settle looks at, at a time
_NOISE_BLOCK = 1024  # of _add_noise


def draw_tokens(logits: Tensor, slots: Tensor, positions: Tensor, tables: SlotTables) -> tuple[Tensor, Tensor]:
    """(token ids int64 [R], whether all of the row's logits are finite, bool [R]).

    logits: [R, V], bf16, fp16 or fp32. slots: int64 [R], rows of the tables. positions: int64 [R], of the tokens to
    draw. Of equal maxima the first id wins. A row that is not finite draws some id of the vocabulary.
    """
    num_rows, vocab_size = logits.shape
    assert slots.shape == positions.shape == (num_rows,) and slots.dtype == positions.dtype == torch.int64
    assert logits.is_contiguous() and slots.is_contiguous() and positions.is_contiguous()
    device = logits.device
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=device)
    is_finite = torch.empty(num_rows, dtype=torch.bool, device=device)
    if not num_rows:
        return token_ids, is_finite
    block, span = _ids_per_program(num_rows, vocab_size)
    num_blocks, num_spans = triton.cdiv(vocab_size, block), triton.cdiv(vocab_size, span)
    best = torch.empty(num_rows, max(num_blocks, num_spans), dtype=torch.float32, device=device)  # of each block
    best_ids = torch.empty_like(best, dtype=torch.int32)
    of_rows = torch.empty(2, num_rows, dtype=torch.float32, device=device)  # maximum, least score
    arrivals = torch.empty(num_rows, dtype=torch.int32, device=device)
    options = launch_options(device)
    _scan[(num_rows, num_blocks)](
        logits, best, best_ids, VOCAB=vocab_size, BLOCK=block, NUM_BLOCKS=num_blocks, num_warps=4, **options
    )
    _settle[(num_rows,)](
        logits,
        slots,
        tables.temperature,
        tables.top_k,
        tables.top_p,
        tables.min_p,
        best,
        best_ids,
        of_rows,
        arrivals,
        token_ids,
        is_finite.view(torch.int8),
        num_rows,
        VOCAB=vocab_size,
        NUM_BLOCKS=num_blocks,
        PADDED=triton.next_power_of_2(num_blocks),
        BLOCK=min(_SEARCH_BLOCK, triton.next_power_of_2(vocab_size)),
        num_warps=16,
        maxnreg=64,  # two rows on a multiprocessor
        **options,
    )
    _add_noise[(num_rows, num_spans)](
        logits,
        slots,
        positions,
        tables.temperature,
        tables.keys,
        of_rows,
        best,
        best_ids,
        arrivals,
        token_ids,
        num_rows,
        VOCAB=vocab_size,
        BLOCK=min(_NOISE_BLOCK, span),
        SPAN=span,
        NUM_SPANS=num_spans,
        PADDED=triton.next_power_of_2(num_spans),
        num_warps=4,
        **options,
    )
    return token_ids, is_finite


def _ids_per_program(num_rows: int, vocab_size: int) -> tuple[int, int]:
    """Ids that a program of _scan takes, and one of _add_noise.

    Few rows are spread over many multiprocessors; programs of many rows are worth their start.
    """
    block, span = (1024, 1024) if num_rows <= 8 else (4096, 4096) if num_rows <= 64 else (4096, 16384)
    largest = triton.next_power_of_2(vocab_size)
    return min(block, largest), min(span, largest)


@triton.jit
def _scan(  # type: ignore[no-untyped-def]
    logits,
    best,
    best_ids,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    PDL: tl.constexpr,
):
    """The block's maximum and its first id; id -1 if the block holds something that is not finite."""
    let_next_start(PDL)
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    wait_for_inputs(PDL)
    values = tl.load(logits + row * VOCAB + ids, ids < VOCAB, other=-float("inf")).to(tl.float32)
    is_broken = (ids < VOCAB) & ((tl.abs(values) < float("inf")) == 0)  # so that NaN is broken
    maximum, index = tl.max(values, 0, return_indices=True)
    at = row * NUM_BLOCKS + block
    tl.store(best + at, maximum)
    tl.store(best_ids + at, tl.where(tl.max(is_broken.to(tl.int32), 0) > 0, -1, block * BLOCK + index))


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["slots"])
def _settle(  # type: ignore[no-untyped-def]
    logits,
    slots,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    best,
    best_ids,
    of_rows,
    arrivals,
    token_ids,
    is_finite,
    num_rows,
    VOCAB: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """A row's maximum, and either its token or the least score that it keeps."""
    let_next_start(PDL)
    row = tl.program_id(0).to(tl.int64)
    blocks = tl.arange(0, PADDED)
    at = row * NUM_BLOCKS + blocks
    wait_for_inputs(PDL)
    slot = tl.load(slots + row)
    temperature = tl.load(temperatures + slot)
    ids = tl.load(best_ids + at, blocks < NUM_BLOCKS, other=0)
    values = tl.load(best + at, blocks < NUM_BLOCKS, other=-float("inf"))
    finite = tl.min(ids, 0) >= 0
    maximum, first = tl.max(values, 0, return_indices=True)
    tl.store(is_finite + row, finite.to(tl.int8))
    if (temperature > 0) & finite:
        least = least_kept(
            logits + row * VOCAB,
            maximum,
            temperature,
            tl.load(top_ks + slot),
            tl.load(top_ps + slot),
            tl.load(min_ps + slot),
            VOCAB,
            BLOCK,
        )
        tl.store(of_rows + row, maximum)
        tl.store(of_rows + num_rows + row, least)
        tl.store(arrivals + row, 0)
    else:
        token_id = tl.sum(tl.where(blocks == first, ids, 0), 0)
        tl.store(token_ids + row, tl.minimum(tl.maximum(token_id, 0), VOCAB - 1).to(tl.int64))
        tl.store(of_rows + num_rows + row, SETTLED)


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["slots", "positions"])
def _add_noise(  # type: ignore[no-untyped-def]
    logits,
    slots,
    positions,
    temperatures,
    keys,
    of_rows,
    best,
    best_ids,
    arrivals,
    token_ids,
    num_rows,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
    NUM_SPANS: tl.constexpr,
    PADDED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Draws in SPAN ids of a row that is not settled yet, and in the whole row if the others have done their part."""
    let_next_start(PDL)
    row, span = tl.program_id(0).to(tl.int64), tl.program_id(1)
    wait_for_inputs(PDL)
    least = tl.load(of_rows + num_rows + row)
    if least != SETTLED:
        slot = tl.load(slots + row)
        maximum, temperature = tl.load(of_rows + row), tl.load(temperatures + slot)
        key = child_key(tl.load(keys + slot), tl.load(positions + row))
        highest = tl.full((), -float("inf"), tl.float32)
        token_id = span * SPAN
        for start in range(0, SPAN, BLOCK):
            ids = span * SPAN + start + tl.arange(0, BLOCK)
            values = tl.load(logits + row * VOCAB + ids, ids < VOCAB, other=-float("inf")).to(tl.float32)
            scores = tl.div_rn(values - maximum, temperature)
            if tl.max(scores, 0) >= least:
                noisy = tl.where(scores >= least, scores + gumbel(key, ids), -float("inf"))
                top, index = tl.max(noisy, 0, return_indices=True)
                token_id = tl.where(top > highest, span * SPAN + start + index, token_id)
                highest = tl.maximum(top, highest)
        at = row * NUM_SPANS
        tl.store(best + at + span, highest)
        tl.store(best_ids + at + span, token_id)
        tl.debug_barrier()  # counting this program in says that both are written
        if tl.atomic_add(arrivals + row, 1) == NUM_SPANS - 1:
            spans = tl.arange(0, PADDED)
            tops = tl.load(best + at + spans, spans < NUM_SPANS, other=-float("inf"), cache_modifier=".cg")
            top_ids = tl.load(best_ids + at + spans, spans < NUM_SPANS, other=0, cache_modifier=".cg")
            _, first = tl.max(tops, 0, return_indices=True)
            tl.store(token_ids + row, tl.sum(tl.where(spans == first, top_ids, 0), 0).to(tl.int64))
