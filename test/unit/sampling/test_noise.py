"""The keyed noise: bit-exact against integers of Python, and statistically a Gumbel noise."""

import math
from collections.abc import Callable

import pytest
import torch

from slipstream.sampling.noise import Noise, Stream, child_keys, gumbel, signed, uniforms

MASK = 2**64 - 1
GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0])
CPU = torch.device("cpu")
ChiSquare = Callable[[torch.Tensor, torch.Tensor], float]


def mix64(bits: int) -> int:
    bits = (bits ^ (bits >> 30)) * MIX_1 & MASK
    bits = (bits ^ (bits >> 27)) * MIX_2 & MASK
    return bits ^ (bits >> 31)


def unmix64(bits: int) -> int:
    for shift, factor in ((31, MIX_2), (27, MIX_1), (30, 1)):
        whole = bits
        for _ in range(64 // shift):
            whole = bits ^ (whole >> shift)
        bits = whole * pow(factor, -1, 2**64) & MASK
    return bits


def key_for(bits: int) -> torch.Tensor:
    """The row key whose id 0 gets exactly these 64 bits."""
    key = unmix64(bits) - GOLDEN & MASK
    assert mix64(key + GOLDEN & MASK) == bits
    return torch.tensor([signed(key)])


def draws(keys: torch.Tensor, logits: torch.Tensor = LOGITS) -> torch.Tensor:
    return (logits + gumbel(keys, torch.arange(len(logits)))).argmax(-1)


def keys_of(seeds: torch.Tensor, choices: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return child_keys(child_keys(seeds, choices), positions)


def test_outputs_are_the_published_ones_of_splitmix64() -> None:
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    found = child_keys(torch.tensor([1234567]), torch.arange(5)).tolist()
    assert [value & MASK for value in found] == published


def test_hash_is_bit_exact_against_python_integers() -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(-(2**63), 2**63 - 1, (300,), generator=generator)
    keys[:4] = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    ids = torch.cat([torch.arange(30), torch.tensor([4095, 131071, 2**31, 2**40])])
    found = child_keys(keys[:, None], ids)
    expected = [[signed(mix64((key + (i + 1) * GOLDEN) & MASK)) for i in ids.tolist()] for key in keys.tolist()]
    assert found.tolist() == expected


@pytest.mark.parametrize(("seed", "choice", "position"), [(0, 0, 0), (-7, 3, 10**6), (2**64 + 5, 1, 17), (2**63, 0, 1)])
def test_slot_and_row_keys_follow_the_documented_tree(seed: int, choice: int, position: int) -> None:
    noise = Noise(4, 11, CPU)
    noise.add(2, seed, choice)
    slot_key = mix64((seed + (choice + 1) * GOLDEN) & MASK)
    row_key = mix64((slot_key + (position + 1) * GOLDEN) & MASK)
    assert [key & MASK for key in noise.row_keys([2, 2], [position, position]).tolist()] == [row_key, row_key]


def test_uniforms_keep_32_bits_where_they_are_small_and_stay_inside_the_open_interval() -> None:
    uppers = [0, 1, 2, 1000, 2**20 + 1, 2**22 + 3, 2**31, 2**32 - 2, 2**32 - 1]
    found = uniforms(torch.tensor([signed(upper << 32 | 0xFFFFFFFF) for upper in uppers])).tolist()
    for upper, value in zip(uppers, found, strict=True):
        exact = (upper + 0.5) / 2**32
        assert value == exact if upper < 2**23 else abs(value - exact) <= 2**-24
    assert found[0] == 2.0**-33
    assert found[-1] == 1 - 2.0**-24


def test_noise_is_finite_at_both_ends_of_the_hash() -> None:
    zero = torch.tensor([0])
    largest, least = gumbel(key_for(0), zero).item(), gumbel(key_for(MASK), zero).item()
    assert largest == pytest.approx(-math.log(-math.log1p(-(2.0**-33))), rel=1e-6)
    assert least == pytest.approx(-math.log(-math.log1p(-(1 - 2.0**-24))), rel=1e-6)


def test_noise_equals_the_formula_in_double_precision() -> None:
    keys = torch.arange(50)
    bits = child_keys(keys[:, None], torch.arange(1000)) >> 32 & 0xFFFFFFFF
    expected = -(-torch.log1p(-(bits.double() + 0.5) / 2**32)).log()
    # near u = 1 (noise below -2) u itself is rounded to 24 bits
    torch.testing.assert_close(gumbel(keys, torch.arange(1000)).double(), expected, rtol=2e-6, atol=3e-3)
    upper = expected > -1
    torch.testing.assert_close(gumbel(keys, torch.arange(1000)).double()[upper], expected[upper], rtol=2e-6, atol=2e-6)


def test_distribution_is_standard_gumbel_including_its_upper_tail() -> None:
    values = gumbel(torch.tensor([11, 12, 13, 14]), torch.arange(2**18)).flatten().double().sort().values
    n = len(values)
    cdf = (-(-values).exp()).exp()
    steps = torch.arange(1, n + 1) / n
    assert (cdf - steps).abs().max() < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov at p = 0.001
    for least in (6.0, 9.0):
        expected = n * -math.expm1(-math.exp(-least))
        assert abs(int((values > least).sum()) - expected) < 4 * math.sqrt(expected)


def test_rows_and_ids_do_not_influence_each_other() -> None:
    for vocab in (5, 37, 4096, 32003):
        keys, ids = torch.arange(100, 109), torch.arange(vocab)
        whole = gumbel(keys, ids)
        for row in range(len(keys)):
            assert torch.equal(gumbel(keys[row : row + 1], ids)[0], whole[row])
        some = torch.randperm(vocab, generator=torch.Generator().manual_seed(vocab))[:9].sort().values
        assert torch.equal(gumbel(keys, some), whole[:, some])
        each = torch.stack([some.roll(row) for row in range(len(keys))])
        assert torch.equal(gumbel(keys, each), whole.gather(1, each))


def test_apply_adds_every_rows_noise_across_blocks() -> None:
    vocab, rows = 50_001, 7  # several blocks of two rows
    noise = Noise(rows, vocab, CPU)
    for slot in range(rows):
        noise.add(slot, seed=slot, choice=slot % 2)
    logits = torch.zeros(rows, vocab)
    noise.apply(logits, range(rows), range(10, 10 + rows))
    assert torch.equal(logits, gumbel(noise.row_keys(range(rows), range(10, 10 + rows)), torch.arange(vocab)))
    assert len({tuple(row) for row in logits[:, :3].tolist()}) == rows


@pytest.mark.parametrize("axis", ["seeds", "choices", "positions"])
def test_draws_follow_softmax_along_every_part_of_the_key(axis: str, chi_square: ChiSquare) -> None:
    n = 40_000
    parts = {name: torch.full((n,), 5) for name in ("seeds", "choices", "positions")}
    parts[axis] = torch.arange(n)
    drawn = draws(keys_of(**parts))
    assert chi_square(drawn, LOGITS.double().softmax(-1)) > 0.001
    assert chi_square(drawn, (LOGITS.double() / 1.1).softmax(-1)) < 1e-6  # negative control: another temperature


@pytest.mark.parametrize("axis", ["seeds", "choices", "positions"])
def test_neighbours_in_every_part_of_the_key_are_independent(axis: str, chi_square: ChiSquare) -> None:
    n = 40_000
    parts = {name: torch.full((n,), 3) for name in ("seeds", "choices", "positions")}
    parts["positions" if axis != "positions" else "seeds"] = torch.arange(n)
    logits = LOGITS[:5]
    first = draws(keys_of(**parts), logits)
    second = draws(keys_of(**{**parts, axis: parts[axis] + 1}), logits)
    probs = logits.double().softmax(-1)
    product = (probs[:, None] * probs).flatten()
    assert chi_square(first * 5 + second, product) > 0.001
    partly_shared = torch.where(torch.arange(n) % 10 == 0, first, second)  # negative control: a tenth is repeated
    assert chi_square(first * 5 + partly_shared, product) < 1e-6


@pytest.mark.parametrize("stream", [Stream.DRAFT, Stream.ACCEPT, Stream.SIMULATION])
def test_streams_are_independent_of_each_other(stream: Stream, chi_square: ChiSquare) -> None:
    n = 40_000
    noise = Noise(1, 5, CPU)
    noise.add(0, seed=8, choice=0)
    first, second = LOGITS[:5].repeat(n, 1), LOGITS[:5].repeat(n, 1)
    noise.apply(first, [0] * n, range(n))
    noise.apply(second, [0] * n, range(n), stream)
    probs = LOGITS[:5].double().softmax(-1)
    pairs = first.argmax(-1) * 5 + second.argmax(-1)
    assert chi_square(pairs, (probs[:, None] * probs).flatten()) > 0.001


def test_streams_hang_on_children_of_the_slot_key_that_no_position_uses() -> None:
    noise = Noise(1, 3, CPU)
    noise.add(0, seed=8, choice=2)
    slot_key = mix64((8 + 3 * GOLDEN) & MASK)
    for stream in (Stream.DRAFT, Stream.ACCEPT, Stream.SIMULATION):
        stream_key = mix64((slot_key + (-2 - stream + 1) * GOLDEN) & MASK)
        row_key = mix64((stream_key + 18 * GOLDEN) & MASK)
        assert noise.row_keys([0], torch.tensor([17]), stream).tolist() == [signed(row_key)]


def test_coins_are_uniform_and_of_each_position_its_own(chi_square: ChiSquare) -> None:
    n = 40_000
    noise = Noise(2, 3, CPU)
    noise.add(0, seed=1, choice=0)
    noise.add(1, seed=2, choice=0)
    coins = noise.coins([0, 1] * n, [position for position in range(n) for _ in range(2)], Stream.ACCEPT).view(n, 2)
    assert coins.min() > 0 and coins.max() < 1
    tenths = (coins * 10).long()
    assert chi_square(tenths[:, 0] * 10 + tenths[:, 1], torch.full((100,), 0.01)) > 0.001
    assert chi_square(tenths[:-1, 0] * 10 + tenths[1:, 0], torch.full((100,), 0.01)) > 0.001


def test_wide_vocabularies_draw_every_region_of_ids_alike(chi_square: ChiSquare) -> None:
    drawn = torch.cat([draws(torch.arange(at, at + 100) * 7919, torch.zeros(16384)) for at in range(0, 3000, 100)])
    assert chi_square(drawn // 1024, torch.full((16,), 1 / 16)) > 0.001
    assert chi_square(drawn % 16, torch.full((16,), 1 / 16)) > 0.001


def test_chi_square_knows_a_textbook_quantile(chi_square: ChiSquare) -> None:
    # 100 coin tosses with 60 heads: statistic 4, one degree of freedom, p = 0.0455
    assert chi_square(torch.tensor([0] * 60 + [1] * 40), torch.tensor([0.5, 0.5])) == pytest.approx(0.0455, abs=1e-4)
