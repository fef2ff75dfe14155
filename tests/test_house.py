"""The house rules that can be read off the source: who imports whom, who prints, how long things get."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "skillprune"

# A module imports only from its own room and from rooms above it. A folder is one room.
ROOMS = (
    "errors",
    "progress",
    "cache",
    "recipe",
    "tasks",
    "families",
    "demo",
    "data",
    "answers",
    "activations",
    "prompts",
    "evaluation",
    "scoring",
    "planning",
    "surgery",
    "repair",
    "recovery",
    "checkpoint",
    "generation",
    "export",
    "benchmark",
    "analysis",
    "report",
    "gating",
    "pipeline",
    "cli",
    "__main__",
)

# Third-party packages that only the rooms named may import; None stands for skillprune/__init__.py.
OWNED = {
    "onnx": {"export", "benchmark"},
    "onnxruntime": {"generation", "export", "benchmark"},
    "onnxscript": {"export", "benchmark"},
    "typer": {"cli"},
    "rich": {"cli"},
    "torch": set(ROOMS) - {"errors", "progress", "cache", "recipe", "tasks", "generation"},
    "transformers": set(ROOMS) - {"errors", "progress", "cache", "recipe", "tasks", "generation"},
}

HEAVY = {"accelerate", "datasets", "onnx", "onnxruntime", "pyarrow", "scipy", "sklearn", "torch", "transformers"}

LONGEST_FILE = 400
LONGEST_FUNCTION = 60


class Import(NamedTuple):
    """One dotted name that a file imports, and the line where it does."""

    name: str
    line: int


def room_of(path: Path) -> str | None:
    """The room a file of the package belongs to, None for the package's own ``__init__.py``."""
    first = path.relative_to(PACKAGE).parts[0]
    return None if first == "__init__.py" else first.removesuffix(".py")


def dotted(path: Path) -> list[str]:
    """The package that relative imports of a file start from, as its parts."""
    return ["skillprune", *path.relative_to(PACKAGE).parent.parts]


def imports_of(tree: ast.AST, package: list[str]) -> Iterator[Import]:
    """Every import below a node: in functions, under TYPE_CHECKING, and by name through importlib."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (Import(f"{module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and called(node) in {"import_module", "__import__"}:
            if isinstance(node.args[0], ast.Constant):
                yield Import(str(node.args[0].value), node.lineno)


def called(node: ast.Call) -> str:
    """The last part of a called name: ``importlib.import_module`` gives ``import_module``."""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def wrong_imports(tree: ast.AST, room: str, package: list[str]) -> list[str]:
    """Breaches of the import order and of package ownership, for a file of the given room."""
    allowed = ROOMS[: ROOMS.index(room) + 1]
    found = []
    for name, line in imports_of(tree, package):
        top, _, rest = name.partition(".")
        if top == "skillprune" and rest.split(".")[0] not in allowed:
            found.append(f"line {line}: {room} imports {name}, which is not a room above it")
        if top in OWNED and room not in OWNED[top]:
            found.append(f"line {line}: {room} imports {name}, which belongs to {', '.join(sorted(OWNED[top]))}")
    return found


def talk(tree: ast.AST) -> list[str]:
    """Uses of the terminal: ``print``, and ``sys``'s argv, stdin, stdout and stderr however they are reached."""
    terminal = {"argv", "stdin", "stdout", "stderr"}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"print", "input"}:
            found.append(f"line {node.lineno}: {node.func.id}()")
        if isinstance(node, ast.Attribute) and node.attr in terminal and getattr(node.value, "id", None) == "sys":
            found.append(f"line {node.lineno}: sys.{node.attr}")
        if isinstance(node, ast.ImportFrom) and node.module == "sys":
            found += [f"line {node.lineno}: sys.{alias.name}" for alias in node.names if alias.name in terminal]
    return found


def runs_at_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported: neither function bodies nor TYPE_CHECKING blocks."""
    waiting: list[ast.AST] = [*tree.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        waiting += ast.iter_child_nodes(node)


def long_functions(tree: ast.AST) -> list[str]:
    """Functions over the limit, counted from ``def`` to the last line of the body."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > LONGEST_FUNCTION:
                found.append(f"line {node.lineno}: {node.name} has {lines} lines, the limit is {LONGEST_FUNCTION}")
    return found


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


FILES = sorted(PACKAGE.rglob("*.py"))
IN_ROOMS = [path for path in FILES if path != PACKAGE / "__init__.py"]


def named(paths: list[Path]) -> list[object]:
    return [pytest.param(path, id=path.relative_to(PACKAGE).as_posix()) for path in paths]


def test_every_room_is_listed() -> None:
    found = {room_of(path) for path in IN_ROOMS}
    assert found
    assert found <= set(ROOMS), "a new room needs its place in the import order"


@pytest.mark.parametrize("path", named(IN_ROOMS))
def test_imports_point_upwards(path: Path) -> None:
    room = room_of(path)
    assert room is not None
    assert wrong_imports(parse(path), room, dotted(path)) == []


@pytest.mark.parametrize("path", named([path for path in FILES if room_of(path) != "cli"]))
def test_only_the_command_line_talks(path: Path) -> None:
    assert talk(parse(path)) == []


def test_the_package_itself_is_lean() -> None:
    module = PACKAGE / "__init__.py"
    names = (each for node in runs_at_import(parse(module)) for each in imports_of(node, ["skillprune"]))
    assert [each for each in names if each.name.split(".")[0] in HEAVY] == []


@pytest.mark.parametrize("path", named(FILES))
def test_nothing_grows_too_long(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{lines} lines hold more than one idea"
    assert long_functions(parse(path)) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("scoring", "from skillprune.planning import plan_pruning"),
        ("scoring", "from skillprune import planning"),
        ("scoring", "from .. import planning"),
        ("scoring", "from ..planning.ratio import by_ratio"),
        ("scoring", "import skillprune.pipeline as chain"),
        ("scoring", "def f():\n    from skillprune.surgery import prune_"),
        ("scoring", "if TYPE_CHECKING:\n    from skillprune.report import Report"),
        ("scoring", "importlib.import_module('skillprune.cli')"),
        ("scoring", "from skillprune import __version__"),
        ("scoring", "import onnxruntime as ort"),
        ("pipeline", "from onnx import load"),
        ("recipe", "import torch.nn as nn"),
        ("tasks", "def f():\n    from transformers import AutoConfig"),
        ("report", "from rich.console import Console"),
    ],
)
def test_a_wrong_import_is_caught(room: str, source: str) -> None:
    assert wrong_imports(ast.parse(source), room, ["skillprune", room])


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("scoring", "from skillprune.errors import DataError"),
        ("scoring", "from .wanda import Wanda"),
        ("scoring", "from . import wanda"),
        ("scoring", "from skillprune import scoring, data"),
        ("scoring", "import torch"),
        ("benchmark", "import onnxruntime"),
    ],
)
def test_a_right_import_passes(room: str, source: str) -> None:
    assert wrong_imports(ast.parse(source), room, ["skillprune", room]) == []


@pytest.mark.parametrize(
    "source", ["print('hi')", "def f():\n    return sys.argv[1:]", "from sys import argv", "sys.stdout.write('x')"]
)
def test_talk_is_caught(source: str) -> None:
    assert talk(ast.parse(source))


def test_an_eager_import_is_caught() -> None:
    source = "try:\n    import torch\nexcept ImportError:\n    pass\ndef f():\n    import onnx\n"
    statements = runs_at_import(ast.parse(source))
    assert [each.name for node in statements for each in imports_of(node, ["skillprune"])] == ["torch"]


def test_a_long_function_is_caught() -> None:
    body = "\n".join("    x = 0" for _ in range(LONGEST_FUNCTION))
    assert long_functions(ast.parse(f"def f():\n{body}\n"))
    assert not long_functions(ast.parse(f"def f():\n{body[:-10]}\n"))
