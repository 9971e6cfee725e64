"""Text of the installed standard library: questions about its functions, and pieces of its source to continue."""

import ast
import random
import sysconfig
from pathlib import Path

from slipstream.errors import ConfigError

ASKED_MODULES = (
    "ast", "bisect", "calendar", "compileall", "contextlib", "copy", "difflib", "dis", "fileinput", "fnmatch",
    "functools", "getpass", "heapq", "html/__init__", "inspect", "json/__init__", "linecache", "locale",
    "logging/__init__", "operator", "pickletools", "pkgutil", "platform", "posixpath", "pprint", "py_compile", "pyclbr",
    "quopri", "secrets", "shlex", "shutil", "socket", "ssl", "stat", "statistics", "string", "subprocess", "symtable",
    "sysconfig", "tarfile", "tempfile", "textwrap", "threading", "timeit", "tokenize", "traceback", "types",
    "urllib/parse", "urllib/request", "uuid", "warnings", "webbrowser", "zipfile",
)  # fmt: skip
# What the model that ships with Slipstream never saw; some are in older Pythons only.
HELD_OUT_FILES = (
    "asyncore.py", "concurrent/futures/thread.py", "ctypes/util.py", "glob.py", "gzip.py", "imp.py",
    "importlib/util.py", "logging/handlers.py", "mailbox.py", "mimetypes.py", "optparse.py", "pty.py", "shelve.py",
    "tracemalloc.py", "unittest/runner.py",
)  # fmt: skip
PUBLIC_NAMES = {"posixpath": "os.path"}
QUESTION = "What does {name} do?"
PIECE_CHARACTERS = 6000


def questions(rng: random.Random, count: int, library: Path | None = None) -> list[str]:
    """A question about each of `count` documented functions; once all were asked about, from the beginning again."""
    names = [name for module in ASKED_MODULES for name in documented_functions(library or library_folder(), module)]
    if not names:
        raise ConfigError("this Python's standard library has no sources; give questions with --questions")
    rng.shuffle(names)
    return [QUESTION.format(name=names[index % len(names)]) for index in range(count)]


def documented_functions(library: Path, module: str) -> list[str]:
    """The full names of the public functions of one file that have a docstring. Nothing is imported."""
    path = library / f"{module}.py"
    if not path.is_file():
        return []
    package = module.removesuffix("/__init__").replace("/", ".")
    nodes = ast.parse(path.read_bytes()).body
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef) and ast.get_docstring(node)]
    names = dict.fromkeys(node.name for node in functions if not node.name.startswith("_"))
    return [f"{PUBLIC_NAMES.get(package, package)}.{name}" for name in names]


def source_pieces(rng: random.Random, count: int, library: Path | None = None) -> list[str]:
    """`count` pieces of up to PIECE_CHARACTERS of held-out files, each from the beginning of a line on."""
    paths = [path for name in HELD_OUT_FILES if (path := (library or library_folder()) / name).is_file()]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    texts = [text for text in texts if len(text) > PIECE_CHARACTERS]
    if not texts:
        raise ConfigError("this Python's standard library has no sources; leave out --workloads source")
    pieces = []
    for text in rng.choices(texts, weights=[len(text) for text in texts], k=count):
        start = text.index("\n", rng.randrange(len(text) - PIECE_CHARACTERS)) + 1
        pieces.append(text[start : start + PIECE_CHARACTERS])
    return pieces


def library_folder() -> Path:
    """Where the standard library lies."""
    return Path(sysconfig.get_path("stdlib"))
