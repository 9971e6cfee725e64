"""Which GPU is here, by what nvidia-smi prints; how old this process is."""

import subprocess
import sys
import time

import pytest

from slipstream.bench import devices
from slipstream.bench.process_age import process_age_s


@pytest.mark.parametrize(
    ("printed", "name"),
    [
        ("NVIDIA H200\n", "NVIDIA H200"),
        ("NVIDIA H200\nNVIDIA H200\n", "NVIDIA H200"),
        ("NVIDIA H200\nNVIDIA L4\n", None),
        ("", None),
    ],
)
def test_name_of_the_gpu(printed: str, name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_QUERY", (sys.executable, "-c", f"print({printed!r}, end='')"))
    assert devices.gpu_name() == name


@pytest.mark.parametrize("query", [("/nowhere/nvidia-smi",), (sys.executable, "-c", "raise SystemExit(9)")])
def test_no_gpu(query: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_QUERY", query)
    assert devices.gpu_name() is None


def test_age_of_a_process_counts_what_came_before_the_import() -> None:
    code = (
        "import time; time.sleep(0.3)\nfrom slipstream.bench.process_age import process_age_s\nprint(process_age_s())"
    )
    started_s = time.perf_counter()
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0.28 <= float(shown) <= time.perf_counter() - started_s + 0.05
    assert process_age_s() > 0.1
