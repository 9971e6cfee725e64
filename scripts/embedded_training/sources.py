"""Where the training text comes from: the standard library and permissively licensed packages, as Python files.

Everything here depends only on what is installed: the running interpreter's library and the `site-packages` folders
named by the caller. Nothing is downloaded. Which files are kept is decided by rules, never by hand.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

STDLIB = "stdlib"  # the origin of the standard library's files
SKIPPED_FOLDERS = frozenset(
    (
        "test", "tests", "testing_data", "idle_test", "site-packages", "__pycache__", "_vendor", "vendor", "vendored",
        "_vendored", "extern", "externals", "_external", "third_party", "_bundled", "pydoc_data", "encodings", "data",
        "fixtures", "templates", "node_modules",
    )
)  # fmt: skip
GENERATED_MARK = re.compile(
    r"auto[- ]?generated|generated (by|from|with|using|automatically)|do not (edit|modify)", re.IGNORECASE
)
LICENCE_MARK = re.compile(r"licen[cs]e|copyright", re.IGNORECASE)

PERMISSIVE = {
    "MIT": r"^(the )?mit( licen[cs]e)?$|OSI Approved :: MIT License|^MIT-0$",
    "BSD": r"^(new |modified )?bsd([- ][23][- ]clause)?( licen[cs]e)?$|OSI Approved :: BSD License|^0BSD$",
    "Apache-2.0": (
        r"^apache([- ]licen[cs]e)?,?[- ]*(version )?2(\.0)?( licen[cs]e)?$|OSI Approved :: Apache Software License"
    ),
    "PSF-2.0": r"^(psf|python)-2\.0(\.1)?$|Python Software Foundation License",
}

# Wheels whose `License-Expression` also covers bundled C and C++ code: the licence of their Python files.
LICENCE_OF_PYTHON_FILES = {"torch": "BSD"}


@dataclass(frozen=True)
class SourceFile:
    """One Python file: `origin` is `STDLIB` or a distribution name, `path` is relative and uses slashes."""

    origin: str
    path: str
    text: str


@dataclass(frozen=True)
class Package:
    """One distribution that gave text, with the licence its own metadata states."""

    name: str
    version: str
    licence: str
    files: int
    num_bytes: int


def permissive_name(stated: str) -> str | None:
    """The short name of a licence statement in our allowed set, or None. SPDX `AND` needs every term allowed."""
    terms = re.split(r"\s+AND\s+", stated.strip().strip("()"))
    names = [_permissive_term(term) for term in terms]
    return " AND ".join(dict.fromkeys(n for n in names if n)) if all(names) else None


def _permissive_term(term: str) -> str | None:
    for choice in re.split(r"\s+OR\s+", term.strip("() ")):
        for name, pattern in PERMISSIVE.items():
            if re.search(pattern, choice.strip(), re.IGNORECASE):
                return name
    return None


def licence_of(dist: metadata.Distribution) -> str | None:
    """The permissive licence of a distribution by its metadata, or None where that states none or another one.

    `License-Expression` decides alone where present; else every licence classifier must be allowed; else `License`.
    """
    fields = dist.metadata
    if fields["Name"] in LICENCE_OF_PYTHON_FILES:
        return LICENCE_OF_PYTHON_FILES[fields["Name"]]
    expression = fields.get("License-Expression")
    if expression:
        return permissive_name(expression)
    classifiers = [c for c in fields.get_all("Classifier") or [] if c.startswith("License ::")]
    stated = [c for c in classifiers if c != "License :: OSI Approved"] or [fields.get("License") or ""]
    names = [permissive_name(s) for s in stated]
    return " OR ".join(dict.fromkeys(n for n in names if n)) if all(names) else None


def stdlib_root() -> Path:
    """The folder of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def stdlib_files() -> list[SourceFile]:
    """The readable library modules, in path order: no tests, no generated tables, no third-party folders."""
    root = stdlib_root()
    paths = (p.relative_to(root).as_posix() for p in root.rglob("*.py"))
    kept = sorted(p for p in paths if _wanted_path(p) and not p.startswith(("config-", "_sysconfigdata", "idlelib/")))
    return [f for f in (_read(STDLIB, root / p, p) for p in kept) if f is not None]


def package_files(folders: Iterable[Path], max_package_bytes: int) -> tuple[list[SourceFile], list[Package]]:
    """Python text of every permissively licensed distribution in `folders`, at most `max_package_bytes` from each.

    A package's files are taken in an order fixed by a hash of their paths, so that the cut is a fair sample.
    """
    files: list[SourceFile] = []
    packages: list[Package] = []
    for dist in sorted(_distributions(folders), key=lambda d: d.metadata["Name"].lower()):
        licence = licence_of(dist)
        if licence is None:
            continue
        mine = list(_capped(_package_texts(dist), max_package_bytes))
        if mine:
            size = sum(len(f.text.encode()) for f in mine)
            packages.append(Package(dist.metadata["Name"], dist.version, licence, len(mine), size))
            files.extend(mine)
    return files, packages


def _distributions(folders: Iterable[Path]) -> list[metadata.Distribution]:
    found = {d.metadata["Name"].lower(): d for d in metadata.distributions(path=[str(f) for f in folders])}
    found.pop("slipstream", None)
    return list(found.values())


def _package_texts(dist: metadata.Distribution) -> Iterator[SourceFile]:
    name = dist.metadata["Name"]
    paths = [p.as_posix() for p in dist.files or [] if p.suffix == ".py" and ".." not in p.parts]
    for path in sorted((p for p in paths if _wanted_path(p)), key=lambda p: hashlib.sha256(p.encode()).digest()):
        file = _read(name, Path(str(dist.locate_file(path))), path)
        if file is not None:
            yield SourceFile(name, path, without_licence_header(file.text))


def _capped(files: Iterable[SourceFile], max_bytes: int) -> Iterator[SourceFile]:
    total = 0
    for file in files:
        total += len(file.text.encode())
        if total > max_bytes:
            return
        yield file


def _wanted_path(path: str) -> bool:
    parts = PurePosixPath(path).parts
    name = parts[-1]
    is_test = name.startswith("test_") or name.endswith("_test.py") or name == "conftest.py"
    return not is_test and not SKIPPED_FOLDERS.intersection(parts[:-1])


def _read(origin: str, file: Path, path: str) -> SourceFile | None:
    try:
        text = file.read_text(encoding="utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError):
        return None
    return SourceFile(origin, path, text) if is_readable_source(text) else None


def is_readable_source(text: str) -> bool:
    """Whether `text` is hand-written Python: long enough, parses, not generated, not minified, not a data table."""
    if len(text) < 200 or GENERATED_MARK.search(text[:1500]):
        return False
    lines = text.splitlines()
    if max(map(len, lines)) > 400 or len(text) / len(lines) > 90:
        return False
    letters = sum(c.isalpha() for c in text)
    digits = sum(c.isdigit() for c in text)
    ascii_share = len(text.encode("ascii", "ignore")) / len(text)
    if letters < 0.4 * len(text) or digits > 0.12 * len(text) or ascii_share < 0.98:
        return False
    return _parses(text)


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return False
    return True


def without_licence_header(text: str) -> str:
    """`text` without the comment block at its top where that is a licence: the same lines in thousands of files."""
    lines = text.split("\n")
    end = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    header = "\n".join(lines[:end])
    return "\n".join(lines[end:]) if LICENCE_MARK.search(header) else text
