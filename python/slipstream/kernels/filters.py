"""The least score that top-k, top-p and min-p keep of a row of logits, without a sort.

The rules are those of sampling/filters.py. A score is (logit - maximum) / temperature, at most 0; a distance is maximum
- logit. The border of top-k is the shortest distance within which there are k tokens, that of top-p the shortest within
which the tokens hold top_p of the mass: one search finds both, by passes over the row, which comes from the L2 cache.
"""

import triton
import triton.language as tl

from slipstream.kernels.noise import log

# Noise lies in [-2.9, 22.9], so a token whose score is below this never beats the likeliest one, whose score is 0.
LEAST_SCORE = tl.constexpr(-26.0)
LOG2_E = tl.constexpr(1.4426950408889634)
FURTHEST = tl.constexpr(3.0e38)  # distances go up to here
NOT_A_KEY = tl.constexpr(0x7FFFFFFF)


@triton.jit
def least_kept(  # type: ignore[no-untyped-def]
    row, maximum, temperature, top_k, top_p, min_p, VOCAB: tl.constexpr, BLOCK: tl.constexpr
):
    """The least score that top-k, top-p and min-p keep, or LEAST_SCORE."""
    least = tl.full((), LEAST_SCORE, tl.float32)
    if (top_k > 0) | (top_p < 1):
        reach = _key(tl.minimum(-LEAST_SCORE * temperature, FURTHEST))
        if top_k > 0:
            reach = _shortest_reach(row, maximum, 0.0, top_k.to(tl.float32), reach, VOCAB, BLOCK)
        if top_p < 1:
            slope = -LOG2_E / temperature
            within = tl.where(top_k > 0, reach, _key(tl.full((), FURTHEST, tl.float32)))
            mass = _mass_within(row, maximum, slope, within, VOCAB, BLOCK)
            reach = _shortest_reach(row, maximum, slope, top_p * mass, reach, VOCAB, BLOCK)
        least = tl.maximum(least, -tl.div_rn(_distance(reach), temperature))
    if min_p > 0:
        least = tl.maximum(least, log(min_p))
    return least


@triton.jit
def _shortest_reach(row, maximum, slope, target, furthest, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """How far from the maximum one must go until the tokens passed have the mass `target`; `furthest` at most.

    Distances are maximum - logit, as keys. Exact: the answer is a token's own distance. A token's mass is
    2 ** (slope * distance), so that slope 0 counts tokens. The answer lies in (low, high]; each pass over the row
    measures the mass at three pivots in between, and draws low and high up to tokens of the row.
    """
    low = tl.full((), -1, tl.int32)
    high = furthest
    while high - low > 1:
        near = _distance(tl.maximum(low, 0))
        step = (_distance(high) - near) * 0.25
        pivot_1 = tl.minimum(tl.maximum(_key(near + step), low + 1), high - 1)
        pivot_2 = tl.minimum(tl.maximum(_key(near + 2 * step), low + 1), high - 1)
        pivot_3 = tl.minimum(tl.maximum(_key(near + 3 * step), low + 1), high - 1)
        mass_1 = tl.zeros((BLOCK,), tl.float32)
        mass_2 = tl.zeros((BLOCK,), tl.float32)
        mass_3 = tl.zeros((BLOCK,), tl.float32)
        nearest = tl.full((BLOCK,), NOT_A_KEY, tl.int32)
        last = tl.full((BLOCK,), -1, tl.int32)
        for start in range(0, VOCAB, BLOCK):
            keys, masses = _load_masses(row, start, maximum, slope, VOCAB, BLOCK)
            mass_1 += tl.where(keys <= pivot_1, masses, 0.0)
            mass_2 += tl.where(keys <= pivot_2, masses, 0.0)
            mass_3 += tl.where(keys <= pivot_3, masses, 0.0)
            nearest = tl.minimum(nearest, tl.where(keys > low, keys, NOT_A_KEY))
            last = tl.maximum(last, tl.where(keys <= high, keys, -1))
        low = tl.maximum(low, tl.min(nearest, 0) - 1)
        high = tl.minimum(high, tl.max(last, 0))
        low, high = _narrow(low, high, pivot_3, tl.sum(mass_3, 0) >= target)
        low, high = _narrow(low, high, pivot_2, tl.sum(mass_2, 0) >= target)
        low, high = _narrow(low, high, pivot_1, tl.sum(mass_1, 0) >= target)
    return high


@triton.jit
def _narrow(low, high, pivot, is_reached):  # type: ignore[no-untyped-def]
    """(low, high] after the target was reached at the pivot, or not."""
    return tl.where(is_reached, low, tl.maximum(low, pivot)), tl.where(is_reached, tl.minimum(high, pivot), high)


@triton.jit
def _mass_within(row, maximum, slope, reach, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Mass of all tokens that are `reach` or less from the maximum."""
    mass = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, VOCAB, BLOCK):
        keys, masses = _load_masses(row, start, maximum, slope, VOCAB, BLOCK)
        mass += tl.where(keys <= reach, masses, 0.0)
    return tl.sum(mass, 0)


@triton.jit
def _load_masses(row, start, maximum, slope, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Keys and masses of the ids from `start` on, NOT_A_KEY beyond the vocabulary."""
    ids = start + tl.arange(0, BLOCK)
    distances = maximum - tl.load(row + ids, ids < VOCAB, other=maximum).to(tl.float32)
    return tl.where(ids < VOCAB, _key(distances), NOT_A_KEY), tl.exp2(slope * distances)


@triton.jit
def _key(distance):  # type: ignore[no-untyped-def]
    """int32 in the order of the fp32 distances, which are not negative: their bits."""
    return distance.to(tl.int32, bitcast=True)


@triton.jit
def _distance(key):  # type: ignore[no-untyped-def]
    return key.to(tl.float32, bitcast=True)
