"""The checked-in page of flags is the one that the options give."""

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "scripts" / "make_flag_reference.py"


def test_the_page_is_current() -> None:
    module = runpy.run_path(str(SCRIPT))
    assert module["PAGE"].read_text() == module["page"](), "run scripts/make_flag_reference.py"


def test_the_page_names_every_flag() -> None:
    page = runpy.run_path(str(SCRIPT))["page"]()
    for name in ("--model-path", "--max-total-tokens", "--disable-overlap-schedule", "--watchdog-timeout-s"):
        assert f"`{name}`" in page
