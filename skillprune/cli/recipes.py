"""The recipes that come with the package, by name: a top-level folder in the repository, package data in a wheel."""

from __future__ import annotations

from pathlib import Path

from skillprune.errors import Problem, RecipeError

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_recipes() -> dict[str, Path]:
    """Recipe files by name, sorted."""
    folders = (_PACKAGE.parent / "recipes", _PACKAGE / "recipes")
    folder = next(folder for folder in folders if (folder / "quickstart.yaml").is_file())
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def shipped_recipe(name: str) -> Path:
    """The file of one shipped recipe.

    Raises:
        RecipeError: there is none of that name.
    """
    known = shipped_recipes()
    if name not in known:
        raise RecipeError(
            [Problem("NAME", repr(name), f"no shipped recipe of this name; there are {', '.join(known)}")]
        )
    return known[name]
