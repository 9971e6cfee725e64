"""Arrivals follow the law of a Poisson process; prompts are fresh, ordinary and reproducible."""

import math
import random
from collections import Counter
from pathlib import Path

import pytest

from slipstream.bench.workload import ordinary_token_ids, poisson_arrivals, random_prompts, read_questions
from slipstream.errors import ConfigError


def test_gaps_are_exponential() -> None:
    """Kolmogorov-Smirnov distance of the gaps to 1 - exp(-rate x), at the level of one in a thousand."""
    num, rate = 20_000, 3.0
    arrivals = poisson_arrivals(random.Random(1), num, rate)
    gaps = sorted(later - earlier for earlier, later in zip([0.0, *arrivals], arrivals, strict=False))
    expected = [1 - math.exp(-rate * gap) for gap in gaps]
    distance = max(max(abs(p - i / num), abs(p - (i + 1) / num)) for i, p in enumerate(expected))
    assert distance < 1.95 / math.sqrt(num)


def test_counts_in_equal_intervals_have_the_variance_of_a_poisson_law() -> None:
    rate, seconds = 5.0, 4000
    arrivals = poisson_arrivals(random.Random(2), int(rate * seconds * 1.1), rate)
    counts = Counter(int(time_s) for time_s in arrivals if time_s < seconds)
    values = [counts[second] for second in range(seconds)]
    mean = sum(values) / seconds
    variance = sum((value - mean) ** 2 for value in values) / (seconds - 1)
    assert mean == pytest.approx(rate, rel=0.03)
    assert variance / mean == pytest.approx(1, abs=0.1)  # its standard error is sqrt(2 / 4000)


def test_a_seed_gives_the_same_load_again() -> None:
    assert poisson_arrivals(random.Random(3), 9, 2.0) == poisson_arrivals(random.Random(3), 9, 2.0)
    assert random_prompts(random.Random(3), range(50), 4, 7) == random_prompts(random.Random(3), range(50), 4, 7)


def test_prompts_are_drawn_evenly_and_do_not_repeat() -> None:
    ids = list(range(100, 116))
    prompts = random_prompts(random.Random(4), ids, 500, 32)
    assert {len(prompt) for prompt in prompts} == {32}
    assert len({tuple(prompt[:16]) for prompt in prompts}) == 500  # no common first page
    counts = Counter(token_id for prompt in prompts for token_id in prompt)
    assert counts.keys() == set(ids)
    chi_squared = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert chi_squared < 37.7  # 15 degrees of freedom, one in a thousand


class SixTokens:
    """Ids 0 and 1 are special, 5 belongs to the model only."""

    vocab_size = 6

    def is_special(self, token_id: int) -> bool:
        return token_id < 2

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if token_id == 5 else b"x"


def test_ordinary_ids_stand_for_text() -> None:
    assert ordinary_token_ids(SixTokens()) == [2, 3, 4]  # type: ignore[arg-type]


def test_questions(tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_text("What is it?\n\n  Why not?  \n")
    assert read_questions(str(path)) == ["What is it?", "Why not?"]


@pytest.mark.parametrize(
    ("data", "complaint"), [(b"\n \n", "no question"), (b"\xff\xfe", "not UTF-8"), (None, "cannot be read")]
)
def test_unusable_questions(tmp_path: Path, data: bytes | None, complaint: str) -> None:
    path = tmp_path / "questions.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=complaint):
        read_questions(str(path))
