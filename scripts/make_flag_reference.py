"""Writes docs_new/reference/flags.mdx from the option fields: the page cannot drift from the program."""

import dataclasses
from pathlib import Path

from slipstream.config.flags import flag_name
from slipstream.config.options import LaunchOptions

PAGE = Path(__file__).parent.parent / "docs_new" / "reference" / "flags.mdx"
HEAD = """---
title: Flags of slipstream serve
---

{/* Written by scripts/make_flag_reference.py; edit the fields in config/options.py instead. */}

Flags without a star are also keywords of `slipstream.Engine`, by the same name; those with one are about the HTTP
server alone. `slipstream serve --print-config` shows what each one resolves to on your machine, and why.

| flag | default | what it does |
|---|---|---|
"""


def page() -> str:
    """The page's text."""
    rows = []
    for field in dataclasses.fields(LaunchOptions):
        choices = field.metadata["choices"]
        default = "none" if field.default is None else field.default
        text = field.metadata["help"] + (f" (one of: {', '.join(choices)})" if choices else "")
        star = " *" if field.metadata["server_only"] else ""
        alias = f" or `{field.metadata['alias']}`" if field.metadata["alias"] else ""
        rows.append(f"| `{flag_name(field.name)}`{alias}{star} | `{default}` | {text} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
