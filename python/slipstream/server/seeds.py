"""Seeds for requests that bring none."""

import hashlib
import itertools


def derive_seed(random_seed: int, number: int) -> int:
    """A seed in [0, 2**63) for request `number` of a server started with `random_seed`. Pure."""
    digest = hashlib.blake2b(f"{random_seed}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class SeedSource:
    """Hands out one seed after the other; the same --random-seed gives the same series."""

    def __init__(self, random_seed: int) -> None:
        self._random_seed = random_seed
        self._numbers = itertools.count()

    def next(self) -> int:
        return derive_seed(self._random_seed, next(self._numbers))
