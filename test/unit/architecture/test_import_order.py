"""A room imports only rooms below it. The order is that of CONTRIBUTING.md; the lowest comes first."""

import ast
import subprocess
import sys
from pathlib import Path

import slipstream

PACKAGE = Path(slipstream.__file__).parent

ROOMS = (
    "errors", "registry", "log", "config", "messages", "hf_transformers", "weights", "kernels", "distributed", "layers",
    "attention", "models", "sampling", "speculative", "worker", "cache", "grammar", "scheduler", "multimodal",
    "tokenizer", "server", "launch", "bench", "embedded", "engine", "cli", "launch_server", "__main__",
)  # fmt: skip
ROOTS = ("errors", "registry", "log")  # errors may be imported by the other two
TORCH_ROOMS = (
    "weights",
    "kernels",
    "distributed",
    "layers",
    "attention",
    "models",
    "sampling",
    "speculative",
    "worker",
)
NO_TORCH_ROOMS = ("messages", "hf_transformers", "cache", "grammar", "scheduler", "multimodal", "tokenizer", "server")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Dotted names of every module that the file imports anywhere, inside functions and TYPE_CHECKING as well."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def rooms_imported(path: Path) -> set[str]:
    parts = [name.split(".") for name in imports_of(path) if name.startswith("slipstream.")]
    return {part[1] for part in parts if part[1] in ROOMS}


def sources() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def test_every_file_lies_in_a_known_room() -> None:
    assert {room_of(path) for path in sources()} <= set(ROOMS)


def test_rooms_import_downwards_only() -> None:
    breaches = [
        f"{path.relative_to(PACKAGE)} imports {room}"
        for path in sources()
        for room in rooms_imported(path)
        if ROOMS.index(room) > ROOMS.index(room_of(path))
    ]
    assert not breaches


def test_rooms_without_torch_do_not_import_it_nor_the_rooms_that_do() -> None:
    breaches = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in sources()
        if room_of(path) in NO_TORCH_ROOMS
        for name in imports_of(path)
        if name.split(".")[0] == "torch" or name.split(".")[:2] in [["slipstream", room] for room in TORCH_ROOMS]
    ]
    assert not breaches


def test_worker_and_scheduler_never_import_each_other() -> None:
    for path in sources():
        if room_of(path) == "worker":
            assert "scheduler" not in rooms_imported(path)
        if room_of(path) == "scheduler":
            assert "worker" not in rooms_imported(path)


def test_no_cycles_between_files_of_one_room() -> None:
    graph: dict[str, set[str]] = {}
    for path in sources():
        module = "slipstream." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        graph[module.removesuffix(".__init__")] = imports_of(path)
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module in done:
            return
        for name in graph[module] & graph.keys() - {module}:
            visit(name, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_no_pickle_anywhere() -> None:
    banned = {"pickle", "cloudpickle", "dill", "shelve", "marshal"}
    for path in sources():
        assert not {name.split(".")[0] for name in imports_of(path)} & banned, path
        text = path.read_text()
        assert "recv_pyobj" not in text and "send_pyobj" not in text and "torch.load" not in text, path


def test_processes_without_a_model_never_load_torch() -> None:
    modules = [
        "slipstream.launch.serve", "slipstream.scheduler.process", "slipstream.tokenizer.process",
        "slipstream.cli.serve", "slipstream.cli.chat", "slipstream.cli.check",
    ]  # fmt: skip
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
