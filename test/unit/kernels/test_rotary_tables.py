"""Cosines and sines of positions against fp64, and against the CPU path."""

import pytest
import torch

from slipstream.kernels.launch import IS_INTERPRETED
from slipstream.kernels.rotary_tables import rotary_tables, rotary_tables_reference
from slipstream.layers.rope import RotaryEmbedding, inverse_frequencies
from support.one_thread import for_tiny_models  # noqa: F401

DEVICE = "cpu" if IS_INTERPRETED else "cuda"
PLAIN = {"rope_type": "default", "rope_theta": 1e6}


def frequencies_of(rotary_dim: int) -> torch.Tensor:
    half = inverse_frequencies(rotary_dim, PLAIN).float()
    return torch.cat((-half, half)).to(DEVICE)


@pytest.mark.parametrize("factor", [1.0, 1.41589])
@pytest.mark.parametrize(("rows", "rotary_dim"), [(1, 2), (7, 6), (40, 64), (3, 300)])
def test_cos_and_sin_of_the_angle_in_fp32(rows: int, rotary_dim: int, factor: float) -> None:
    generator = torch.Generator().manual_seed(rows)
    positions = torch.randint(0, 10**6, (rows,), generator=generator).to(DEVICE)
    frequencies = frequencies_of(rotary_dim)
    cos, sin = rotary_tables(positions, frequencies, factor)
    angles = (positions.float().unsqueeze(1) * frequencies).double().unsqueeze(1)
    assert cos.shape == sin.shape == (rows, 1, rotary_dim)
    assert cos.dtype == sin.dtype == torch.float32
    torch.testing.assert_close(cos.double(), angles.cos() * factor, rtol=0, atol=3e-7)
    torch.testing.assert_close(sin.double(), angles.sin() * factor, rtol=0, atol=3e-7)
    reference = rotary_tables_reference(positions, frequencies, factor)
    for table, expected in zip((cos, sin), reference, strict=True):
        torch.testing.assert_close(table, expected, rtol=0, atol=1e-6)


def test_as_the_cpu_path_does() -> None:
    positions = torch.tensor([0, 1, 4095, 262143, 999_999])
    expected = RotaryEmbedding(24, PLAIN, 1.2, torch.device("cpu")).at(positions)
    for table, other in zip(rotary_tables(positions.to(DEVICE), frequencies_of(24), 1.2), expected, strict=True):
        torch.testing.assert_close(table.cpu(), other, rtol=0, atol=1e-6)


def test_worked_values() -> None:
    """A quarter turn per position, in both directions."""
    quarter = torch.tensor([-torch.pi / 2, torch.pi / 2], device=DEVICE)
    cos, sin = rotary_tables(torch.arange(4, device=DEVICE), quarter, 2.0)
    assert cos[:, 0, 0].tolist() == pytest.approx([2.0, 0.0, -2.0, 0.0], abs=1e-6)
    assert sin[:, 0, 0].tolist() == pytest.approx([0.0, -2.0, 0.0, 2.0], abs=1e-6)
    assert sin[:, 0, 1].tolist() == pytest.approx([0.0, 2.0, 0.0, -2.0], abs=1e-6)


def test_no_rows() -> None:
    assert rotary_tables(torch.arange(0, device=DEVICE), frequencies_of(4), 1.0)[0].shape == (0, 1, 4)
