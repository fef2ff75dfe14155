"""README and docs say what the code does: generated pages, code blocks, recipes, commands and links are checked."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_rows
import typer
import yaml
import zoo_checks
from zoo import ZOO

import skillprune
from skillprune.cli import app
from skillprune.errors import RecipeError
from skillprune.families import FAMILIES
from skillprune.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
GENERATOR = ROOT / "docs" / "generate_recipe_reference.py"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
UsageError = typer.BadParameter.__mro__[1]  # typer's, whether it brings its own click or uses the installed one

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    """Contents of the fenced blocks of one language."""
    return [body for kind, body in FENCE.findall(text) if kind == language]


def commands(text: str) -> Iterator[str]:
    """Every ``skillprune ...`` command of a page: lines of shell blocks, and inline code."""
    for block in blocks(text, "sh"):
        yield from (line.strip() for line in block.splitlines() if line.strip().startswith("skillprune "))
    for code in re.findall(r"`([^`]+)`", FENCE.sub("", text)):
        if code.startswith("skillprune "):
            yield " ".join(code.split())


def parse(command: str) -> None:
    """Parses a command as the command line would, running nothing.

    Raises:
        UsageError: an option or a subcommand does not exist, or an argument is missing or too many.
    """
    here: Any = typer.main.get_command(app)
    name, *words = shlex.split(command)
    while hasattr(here, "commands"):
        if not words or words[0] not in here.commands:
            raise UsageError(f"{command!r}: {name} has no such subcommand")
        name = words.pop(0)
        here = here.commands[name]
    here.make_context(name, words)


def unknown_names(source: str) -> list[str]:
    """Names that code takes from skillprune, or from the alias it gives it, and that are not public."""
    tree = ast.parse(source)
    aliases = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "skillprune"
    }
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases
    }
    return sorted(used - set(skillprune.__all__))


def anchors(text: str) -> set[str]:
    """What links to the headings of a page end in."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(FENCE.sub("", text)))
    return {words.replace(" ", "-") for words in plain}


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links whose file is missing, and links to headings that are not there."""
    broken = []
    for target in LINK.findall(FENCE.sub("", text)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists():
            broken.append(target)
        elif anchor and anchor not in anchors(text if file == page else file.read_text(encoding="utf-8")):
            broken.append(target)
    return broken


def check_recipe(text: str, folder: Path) -> None:
    """Validates a recipe, or a part of one, with the directories and files it names made up.

    Raises:
        RecipeError: it is wrong.
    """
    recipe = {"model": "builtin:reviews-tiny", "task": {"data": "builtin:reviews"}, **yaml.safe_load(text)}
    if recipe["model"].startswith("./"):
        (folder / recipe["model"]).mkdir(exist_ok=True)
    data = recipe["task"]["data"]
    for name in data.values() if isinstance(data, dict) and "hub" not in data else ():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    load_recipe(file)


@pytest.fixture(params=PAGES, ids=NAMES)
def page(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


@pytest.fixture
def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_the_recipe_reference_is_the_generated_one() -> None:
    committed = (ROOT / "docs" / "recipe-reference.md").read_text(encoding="utf-8")
    assert committed == runpy.run_path(str(GENERATOR))["render"](), f"run python {GENERATOR.relative_to(ROOT)}"


def test_the_recipe_reference_has_every_key() -> None:
    reference = (ROOT / "docs" / "recipe-reference.md").read_text(encoding="utf-8")
    schema = skillprune.Recipe.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    keys = [key for section in sections for key in section.get("properties", ())]
    assert len(keys) > 30
    for key in keys:
        assert reference.count(f"\n| `{key}` |") == keys.count(key)


def test_python_blocks_compile(page: Path, text: str) -> None:
    for block in blocks(text, "python"):
        compile(block, str(page), "exec")
        assert unknown_names(block) == []


def test_commands_parse(text: str) -> None:
    for command in commands(text):
        parse(command)


def test_recipes_validate(text: str, tmp_path: Path) -> None:
    for block in blocks(text, "yaml"):
        check_recipe(block, tmp_path)


def test_links_resolve(page: Path, text: str) -> None:
    assert broken_links(page, text) == []


def test_the_family_that_is_added_as_an_example_passes_every_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the reload in a process with skillprune, which has no such row."""
    names: dict[str, Any] = {}
    for block in blocks((ROOT / "docs" / "add-a-family.md").read_text(encoding="utf-8"), "python"):
        exec(block, names)  # the page is ours
    monkeypatch.setitem(FAMILIES, "gpt_bigcode", names["row"])
    monkeypatch.setitem(ZOO, "gpt_bigcode", names["specimen"])
    zoo_checks.prepare(["gpt_bigcode"], tmp_path)
    checks = [check for name, check in zoo_checks.CHECKS.items() if name != "per-layer reload"]
    assert len(checks) >= 9 and all(check.applies(ZOO["gpt_bigcode"]) for check in checks)
    for check in checks:
        check.run(ZOO["gpt_bigcode"], tmp_path)
    for check_row in (
        test_rows.test_the_row_finds_every_ffn_with_its_width,
        test_rows.test_firing_is_what_the_down_projection_reads,
        test_rows.test_what_down_writes_joins_the_stream_as_the_row_says,
    ):
        check_row("gpt_bigcode")


def test_there_is_something_to_check() -> None:
    pages = [page.read_text(encoding="utf-8") for page in PAGES]
    assert {"README.md", "docs/guide.md", "docs/how-it-works.md", "docs/recipe-reference.md"} <= set(NAMES)
    assert sum(len(list(commands(text))) for text in pages) >= 10
    assert sum(len(blocks(text, "python")) for text in pages) >= 4
    assert sum(len(blocks(text, "yaml")) for text in pages) >= 4


@pytest.mark.parametrize("name", ["README.md", "docs/guide.md"])
def test_the_report_schema_is_named(name: str) -> None:
    page = ROOT / name
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert ROOT / "docs" / "report.schema.json" in [(page.parent / target).resolve() for target in targets]


@pytest.mark.parametrize("target", ["quickstart", "test", "test-compat", "help"])
def test_the_readme_names_real_make_targets(target: str) -> None:
    assert f"make {target}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(
    "command", ["skillprune run r.yaml --no-such", "skillprune nothing", "skillprune run", "skillprune recipes drop x"]
)
def test_a_wrong_command_is_caught(command: str) -> None:
    with pytest.raises(UsageError):
        parse(command)


def test_other_mistakes_are_caught(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = "# One heading\n[a](#one-heading) [b](#two) [c](gone.md) [d](https://example.org) [e](page.md#no)\n"
    page.write_text(text, encoding="utf-8")
    assert broken_links(page, text) == ["#two", "gone.md", "page.md#no"]
    assert unknown_names("import skillprune as sp\nsp.run\nsp.fly\n") == ["fly"]
    with pytest.raises(RecipeError, match="keep_ration"):
        check_recipe("plan: {keep_ration: 0.5}", tmp_path)
