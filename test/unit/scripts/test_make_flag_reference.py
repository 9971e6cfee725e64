"""The checked-in page of flags is the one that the options give."""

from support.scripts import load_script


def test_the_page_is_current() -> None:
    script = load_script("make_flag_reference")
    assert script.PAGE.read_text() == script.page(), "run scripts/make_flag_reference.py"


def test_the_page_names_every_flag() -> None:
    page = load_script("make_flag_reference").page()
    for name in ("--model-path", "--max-total-tokens", "--disable-overlap-schedule", "--watchdog-timeout-s"):
        assert f"`{name}`" in page
