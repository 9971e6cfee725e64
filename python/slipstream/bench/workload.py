"""What the benchmarks send, and when. Everything follows from a seed."""

import random
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from slipstream.errors import ConfigError
from slipstream.tokenizer.text_tokenizer import TextTokenizer

MAX_QUESTIONS_BYTES = 16 * 2**20


def ordinary_token_ids(tokenizer: TextTokenizer) -> list[int]:
    """Ids that stand for text: no special token, and none that the model has but the tokenizer lacks."""
    return [
        token_id
        for token_id in range(tokenizer.vocab_size)
        if not tokenizer.is_special(token_id) and tokenizer.token_bytes(token_id)
    ]


def random_prompts(rng: random.Random, token_ids: Sequence[int], num_prompts: int, input_len: int) -> list[list[int]]:
    """`num_prompts` prompts of `input_len` tokens each, drawn evenly from `token_ids`."""
    return [rng.choices(token_ids, k=input_len) for _ in range(num_prompts)]


def poisson_arrivals(rng: random.Random, num_requests: int, request_rate: float) -> list[float]:
    """Seconds after the start at which requests arrive: a Poisson process, so the gaps are exponential."""
    return list(accumulate(rng.expovariate(request_rate) for _ in range(num_requests)))


def read_questions(path: str) -> list[str]:
    """One question for each line that is not empty. Raises ConfigError."""
    try:
        size = Path(path).stat().st_size
        if size > MAX_QUESTIONS_BYTES:
            raise ConfigError(f"--questions {path} has {size} bytes; the limit is {MAX_QUESTIONS_BYTES}")
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"--questions {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--questions {path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    questions = [line.strip() for line in lines if line.strip()]
    if not questions:
        raise ConfigError(f"--questions {path} holds no question; write one on each line")
    return questions
