"""Public names of the standard library and the first sentence of what its documentation strings say of them.

Python modules are read by `ast`, never imported. The modules compiled into the interpreter have no source to read, so
the documentation of a fixed list of them is read from the objects themselves.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TypeGuard

from embedded_training.sources import SourceFile

MAX_ANSWER_CHARACTERS = 240
MIN_ANSWER_WORDS = 3

# Modules whose names are known to users by another name.
PUBLIC_NAME = {
    "posixpath": "os.path", "genericpath": "os.path", "_collections_abc": "collections.abc", "_pydecimal": "decimal",
    "_weakrefset": "weakref", "_threading_local": "threading",
}  # fmt: skip
UNASKED_PACKAGES = frozenset(("lib2to3", "idlelib", "turtledemo", "antigravity", "this"))

# Compiled modules -> the name under which users know them ("" for names that need no module).
COMPILED_MODULES = {
    "builtins": "", "math": "math", "cmath": "cmath", "itertools": "itertools", "sys": "sys", "time": "time",
    "posix": "os", "gc": "gc", "array": "array", "binascii": "binascii", "zlib": "zlib", "select": "select",
    "unicodedata": "unicodedata", "marshal": "marshal", "errno": "errno", "atexit": "atexit", "fcntl": "fcntl",
    "mmap": "mmap", "_collections": "collections", "_functools": "functools", "_io": "io", "_struct": "struct",
    "_csv": "csv", "_random": "random", "_socket": "socket", "_thread": "_thread", "_weakref": "weakref",
    "_contextvars": "contextvars", "_queue": "queue", "_bz2": "bz2", "_lzma": "lzma", "_sre": "re",
}  # fmt: skip

ABBREVIATION = re.compile(r"\b(e\.g|i\.e|etc|vs|cf|resp|approx|Dr|Mr|no|incl|Jr|St)\.$", re.I)
SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")
SIGNATURE = re.compile(r"^[\w.]+\s*\(.*?\)\s*(->|--|=|:)?\s*[^.]*$|^[\w.]+\(.*\)\s*(->|--)")


@dataclass(frozen=True)
class Item:
    """One documented public name: `kind` is module, class, function or method; `answer` is one clean sentence."""

    name: str
    kind: str
    answer: str


def module_name(path: str) -> str:
    """Dotted module name of a file path relative to the library's root."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def collect_items(files: Iterable[SourceFile]) -> list[Item]:
    """Every askable item of these library files and of the compiled modules, by name; the first one of a name stays."""
    files = list(files)
    trees = {module_name(f.path): ast.parse(f.text) for f in files}
    aliases = _reexports(trees)
    found: dict[str, Item] = {}
    for item in [*_source_items(trees), *_compiled_items()]:
        item = replace(item, name=_public_name(item.name, aliases))
        if _askable(item):
            found.setdefault(item.name, item)
    return [found[name] for name in sorted(found)]


def names_by_package(files: Iterable[SourceFile]) -> dict[str, set[str]]:
    """Top-level package -> every identifier in its text, documented or not: what no made-up name may be."""
    names: dict[str, set[str]] = {}
    for file in files:
        parts = _public_name(module_name(file.path), {}).split(".")
        names.setdefault(parts[0], set()).update(parts, re.findall(r"[A-Za-z_]\w+", file.text))
    for compiled, public in COMPILED_MODULES.items():
        for name, value in vars(_module(compiled) or object).items():
            names.setdefault(public, set()).update((name, *(vars(value) if inspect.isclass(value) else ())))
    return names


def defined_names(files: Iterable[SourceFile]) -> list[str]:
    """Sorted public dotted names of the modules, classes, functions and methods of any Python files."""
    names: set[str] = set()
    for file in files:
        module = module_name(file.path)
        names.add(module)
        names.update(_definition_names(ast.parse(file.text).body, module))
    return sorted(name for name in names if _askable(Item(name, "module", "")))


def _definition_names(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}.{node.name}"
        if isinstance(node, ast.ClassDef):
            yield from _definition_names(node.body, f"{prefix}.{node.name}")


def first_sentence(doc: object) -> str | None:
    """The first sentence of a documentation string as one clean line, or None where it has no usable one."""
    if not isinstance(doc, str):
        return None
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(doc).strip())
    text = " ".join(next((p for p in paragraphs if not SIGNATURE.match(" ".join(p.split()))), "").split())
    text = re.sub(r"``|(?<!\w):\w+:(?=`)", lambda m: "`" if m[0] == "``" else "", text)
    sentence = _cut_sentence(text)
    if not sentence or len(sentence) > MAX_ANSWER_CHARACTERS or len(sentence.split()) < MIN_ANSWER_WORDS:
        return None
    if not sentence.isascii() or not sentence[0].isalpha() or sentence[-1] in ":,;(" or ">>>" in sentence:
        return None
    return sentence if sentence[-1] in ".!?" else sentence + "."


def _cut_sentence(text: str) -> str:
    for match in SENTENCE_END.finditer(text):
        if not ABBREVIATION.search(text[: match.start() + 1]):
            return text[: match.end()]
    return text


def _source_items(trees: dict[str, ast.Module]) -> Iterator[Item]:
    for module, tree in sorted(trees.items()):
        if answer := first_sentence(ast.get_docstring(tree) or _assigned_doc(tree)):
            yield Item(module, "module", answer)
        defined = list(_definitions(tree.body, module, inside_class=False))
        yield from defined
        yield from _bound_methods(tree, module, defined)


def _assigned_doc(tree: ast.Module) -> str | None:
    for node in tree.body:
        if _assigns(node, "__doc__") and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return node.value.value
    return None


def _assigns(node: ast.stmt, name: str) -> TypeGuard[ast.Assign]:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)


def _bound_methods(tree: ast.Module, module: str, defined: list[Item]) -> Iterator[Item]:
    """Functions that are one instance's methods: `_inst = Random()` and later `shuffle = _inst.shuffle`."""
    by_name = {item.name: item for item in defined}
    class_of: dict[str, str] = {}
    for node in tree.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        target, value = node.targets[0].id, node.value
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
            class_of[target] = value.func.id
        elif isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name) and value.value.id in class_of:
            method = by_name.get(f"{module}.{class_of[value.value.id]}.{value.attr}")
            if method:
                yield Item(f"{module}.{target}", "function", method.answer)


def _definitions(body: list[ast.stmt], prefix: str, inside_class: bool) -> Iterator[Item]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _documented(node, prefix, "class")
            yield from _definitions(node.body, f"{prefix}.{node.name}", inside_class=True)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documented(node, prefix, "method" if inside_class else "function")
        elif isinstance(node, ast.If | ast.Try):
            branches = [node.body, node.orelse]
            branches += [h.body for h in node.handlers] if isinstance(node, ast.Try) else []
            for branch in branches:
                yield from _definitions(branch, prefix, inside_class)


def _documented(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, prefix: str, kind: str) -> Iterator[Item]:
    if answer := first_sentence(ast.get_docstring(node)):
        yield Item(f"{prefix}.{node.name}", kind, answer)


def _reexports(trees: dict[str, ast.Module]) -> dict[str, str]:
    """Full name where defined -> name users know, for names that a package takes from its own or a private module."""
    aliases: dict[str, str] = {}
    for module, tree in sorted(trees.items()):
        is_package = any(other.startswith(module + ".") for other in trees)
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom):
                continue
            source = f"{module}.{node.module}" if node.level == 1 and is_package and node.module else node.module or ""
            if source not in trees or not _hidden_behind(source, module):
                continue
            for name in node.names:
                exported = _exported(trees[source]) if name.name == "*" else [name.name]
                aliases.update((f"{source}.{n}", f"{module}.{name.asname or n}") for n in exported if n != "*")
    return aliases


def _hidden_behind(source: str, module: str) -> bool:
    return source.startswith(module + ".") or source.split(".")[-1].startswith("_")


def _exported(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if _assigns(node, "__all__") and isinstance(node.value, ast.List | ast.Tuple):
            return [e.value for e in node.value.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)]
    return [n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)]


def _public_name(name: str, aliases: dict[str, str]) -> str:
    for private, public in PUBLIC_NAME.items():
        if name == private or name.startswith(private + "."):
            return public + name[len(private) :]
    parts = name.split(".")
    for end in range(len(parts), 1, -1):
        public_head = aliases.get(".".join(parts[:end]))
        if public_head:
            return ".".join([public_head, *parts[end:]])
    return name


def _askable(item: Item) -> bool:
    parts = item.name.split(".")
    private = any(p.startswith("_") for p in parts)
    return not private and parts[0] not in UNASKED_PACKAGES and len(item.name) <= 60 and "__main__" not in parts


def _compiled_items() -> Iterator[Item]:
    for compiled, public in COMPILED_MODULES.items():
        module = _module(compiled)
        if module is None:
            continue
        prefix = public + "." if public else ""
        if compiled == public and (answer := first_sentence(module.__doc__)):
            yield Item(public, "module", answer)
        for name, value in sorted(vars(module).items()):
            if not inspect.ismodule(value):
                yield from _object_items(prefix + name, value)


def _object_items(name: str, value: object) -> Iterator[Item]:
    if inspect.isclass(value):
        if answer := first_sentence(value.__doc__):
            yield Item(name, "class", answer)
        for attribute, member in sorted(vars(value).items()):
            documented = callable(member) or inspect.isgetsetdescriptor(member)
            if documented and (answer := first_sentence(getattr(member, "__doc__", None))):
                yield Item(f"{name}.{attribute}", "method", answer)
    elif inspect.isbuiltin(value) and (answer := first_sentence(value.__doc__)):
        yield Item(name, "function", answer)


def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
