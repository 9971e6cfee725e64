"""Percentiles against numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.bench.statistics import percentile, summarize

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)


@given(VALUES, st.floats(0, 100))
def test_percentile_is_numpys(values: list[float], percent: float) -> None:
    assert percentile(sorted(values), percent) == pytest.approx(np.percentile(values, percent), rel=1e-9, abs=1e-9)


@given(VALUES)
def test_summary(values: list[float]) -> None:
    summary = summarize(values)
    assert summary is not None
    expected = [np.mean(values), *np.percentile(values, [50, 90, 99])]
    assert [summary.mean, summary.p50, summary.p90, summary.p99] == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_nothing_measured() -> None:
    assert summarize([]) is None
