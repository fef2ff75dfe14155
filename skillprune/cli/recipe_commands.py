"""Commands about recipes themselves: list, show and copy the shipped ones, validate one, print the schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from skillprune.cli.errors import exit_codes
from skillprune.cli.options import Debug, Overrides, RecipePath
from skillprune.cli.recipes import shipped_recipe, shipped_recipes
from skillprune.errors import OutputError
from skillprune.recipe import dump_recipe, load_recipe, recipe_schema

out = Console()
err = Console(stderr=True)

recipes_app = typer.Typer(help="The ready recipes that come with skillprune.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A name that `skillprune recipes list` prints.")]


@recipes_app.command("list")
def list_recipes() -> None:
    """Name the shipped recipes, each with the first line that says what it is."""
    for name, path in shipped_recipes().items():
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        _print(f"{name:<24}{first}")


@recipes_app.command("show")
def show_recipe(name: Name) -> None:
    """Print a shipped recipe."""
    with exit_codes(err, debug=False):
        _print(shipped_recipe(name).read_text(encoding="utf-8"))


@recipes_app.command("copy")
def copy_recipe(
    name: Name,
    target: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Where to; default: NAME.yaml here.")] = None,
) -> None:
    """Copy a shipped recipe to start your own from."""
    with exit_codes(err, debug=False):
        text = shipped_recipe(name).read_text(encoding="utf-8")
        path = target or Path(f"{name}.yaml")
        if path.exists():
            raise OutputError(f"{path} exists; name another file")
        if not path.parent.is_dir():
            raise OutputError(f"{path.parent} is not a directory")
        path.write_text(text, encoding="utf-8")
        _print(f"wrote {path}")


def validate_command(recipe: RecipePath, overrides: Overrides = None, debug: Debug = False) -> None:
    """Check a recipe and print it with every default filled in; exit code 2 and all problems at once if it is wrong."""
    with exit_codes(err, debug=debug):
        _print(dump_recipe(load_recipe(recipe, overrides or ())))


def schema_command() -> None:
    """Print the JSON schema of recipes, for editors that complete YAML."""
    _print(json.dumps(recipe_schema(), indent=2))


def _print(text: str) -> None:
    out.print(text.rstrip(), markup=False, emoji=False, highlight=False, soft_wrap=True)
