"""Figures between the marks of a page, and text that MDX can read."""

import pytest

from slipstream.bench.performance_page import BEGIN, END, NOTHING, mdx, put_figures
from slipstream.errors import ConfigError


def test_without_results_nothing_is_claimed() -> None:
    page = put_figures(f"a\n{BEGIN}\n| old | 3.1 |\n{END}\nb", [], [], None)
    assert page == f"a\n{BEGIN}\n\n{NOTHING}\n\n{END}\nb"
    assert put_figures(page, [], [], None) == page


def test_a_page_without_marks() -> None:
    with pytest.raises(ConfigError, match="no lines"):
        put_figures("text", [], [], None)


def test_what_mdx_would_take_for_code_is_escaped() -> None:
    assert mdx("x < 3 and {y}, `a<b> {c}`") == "x &lt; 3 and &#123;y}, `a<b> {c}`"
