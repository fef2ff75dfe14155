"""What travels: the wheel built from the source distribution, and the dependencies declared for it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Where the distribution is not called like the module that it installs. pydantic pins its own core exactly, so that
# whoever declares the one has declared the other.
DISTRIBUTION = {"pydantic_core": "pydantic", "sklearn": "scikit-learn", "yaml": "pyyaml"}


def imported_modules(source: str) -> Iterator[str]:
    """Top-level names of the absolute imports in a source text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def distributions(modules: Iterable[str]) -> set[str]:
    """The third-party distributions behind module names, in normal form."""
    outside = set(modules) - set(sys.stdlib_module_names) - {"skillprune"}
    return {normal(DISTRIBUTION.get(name, name)) for name in outside}


def normal(name: str) -> str:
    """The form in which PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names_of(requirements: Iterable[str]) -> set[str]:
    """Distribution names of requirement lines such as ``torch>=2.6; python_version > '3.10'``."""
    return {normal(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]) for line in requirements}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])


@pytest.fixture(scope="module")
def used() -> set[str]:
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "skillprune").rglob("*.py"))
    return distributions(name for source in sources for name in imported_modules(source))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as a release builds it: a source distribution first, the wheel from that."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("skillprune-*.whl")
    return built


@pytest.fixture(scope="module")
def content(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_every_import_is_declared(project: dict[str, Any], used: set[str]) -> None:
    extras = project["optional-dependencies"]
    declared = names_of(
        [*project["dependencies"], *extras["optimum"], *extras["gpu"], *extras["report"], *extras["prompts"]]
    )
    assert used - declared == set()


def test_every_dependency_is_used(project: dict[str, Any], used: set[str]) -> None:
    assert names_of(project["dependencies"]) - used == set()


def test_an_undeclared_import_is_caught() -> None:
    source = "import os, yaml\ndef f():\n    from sklearn.metrics import f1_score\n    from .near import thing\n"
    assert distributions(imported_modules(source)) == {"pyyaml", "scikit-learn"}


@pytest.mark.parametrize("line", ["transformers-5", "transformers-4.57"])
def test_constraints_pin_what_is_declared(project: dict[str, Any], line: str) -> None:
    text = (ROOT / "constraints" / f"{line}.txt").read_text(encoding="utf-8")
    pins = dict(entry.split("==") for entry in text.splitlines() if entry and not entry.startswith("#"))
    assert [version for version in pins.values() if not re.fullmatch(r"[0-9][0-9a-z.]*", version)] == []
    assert pins["torch"] == "2.13.0"
    assert f"transformers-{pins['transformers']}".startswith(f"{line}.")

    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pinned = [entry for entry in wanted if "python_version < '3.11'" not in entry]  # the pins are for 3.11 or newer
    assert names_of(pinned) - {normal(name) for name in pins} == set()


def test_the_wheel_has_every_file(content: set[str]) -> None:
    files = [path for path in (ROOT / "skillprune").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    names = {path.relative_to(ROOT).as_posix() for path in files}
    assert {"skillprune/__init__.py", "skillprune/py.typed"} <= names
    assert names - content == set()


def test_the_wheel_has_the_recipes(content: set[str]) -> None:
    recipes = {f"skillprune/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "recipes").rglob("*.yaml")}
    assert "skillprune/recipes/quickstart.yaml" in recipes
    assert recipes - content == set()


def test_the_wheel_has_nothing_else(content: set[str]) -> None:
    stray = re.compile(r"/(tests|benchmarks|__pycache__)/|\.(onnx|safetensors|pyc)$")
    assert {name.split("/")[0].partition("-")[0] for name in content} == {"skillprune"}
    assert [name for name in content if stray.search(name)] == []


def test_the_unpacked_wheel_works_from_anywhere(wheel: Path, project: dict[str, Any], tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    script = (
        "import skillprune\n"
        "from importlib.resources import files\n"
        "recipe = files('skillprune') / 'recipes' / 'quickstart.yaml'\n"
        "print(skillprune.__version__, recipe.is_file(), skillprune.__file__, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.splitlines() == [project["version"], "True", str(tmp_path / "skillprune" / "__init__.py")], (
        done.stderr
    )
