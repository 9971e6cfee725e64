"""What kernels ask for of a multiprocessor's memory."""

import ctypes
import doctest
from typing import Any

import pytest
import triton

from slipstream.kernels import carveout, skinny_gemv


class Driver:
    """Stands for libcuda, and keeps what it was asked."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.calls: list[tuple[int | None, int, int]] = []

    def cuFuncSetAttribute(self, function: ctypes.c_void_p, attribute: int, value: int) -> int:
        self.calls.append((function.value, attribute, value))
        return self.status


def load(name: str) -> None:
    """As Triton does when it has loaded a kernel onto a GPU."""
    triton.knobs.runtime.kernel_load_end_hook(object(), 2**40 + 8, name, None, "hash")


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> Any:
    carveout.prefer_carveouts()
    carveout.prefer_carveouts()  # a second device adds no second hook
    yield monkeypatch
    triton.knobs.runtime.kernel_load_end_hook.remove(carveout._prefer_carveout)
    carveout.prefer_carveouts.cache_clear()


def test_every_loaded_kernel_asks_for_its_share(hooked: pytest.MonkeyPatch) -> None:
    driver = Driver()
    hooked.setattr(carveout, "_driver", lambda: driver)
    load(skinny_gemv._gemv.fn.__name__)
    load("_attend")
    preferred_carveout = 9  # in the CUDA driver API's enumeration of function attributes
    assert driver.calls == [(2**40 + 8, preferred_carveout, 0), (2**40 + 8, preferred_carveout, 70)]


def test_a_refusal_names_the_kernel(hooked: pytest.MonkeyPatch) -> None:
    hooked.setattr(carveout, "_driver", lambda: Driver(status=400))
    with pytest.raises(RuntimeError, match="_attend: CUDA driver error 400"):
        load("_attend")


def test_doctests() -> None:
    assert doctest.testmod(carveout).failed == 0
