"""Recipe files and ``--set`` flags into one Recipe; what a valid recipe is, is left to the schema."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skillprune.errors import Problem, RecipeError
from skillprune.recipe.base import absolute, looks_like_path
from skillprune.recipe.inputs import BUILTIN
from skillprune.recipe.problems import in_order
from skillprune.recipe.schema import Recipe
from skillprune.recipe.source import Document, Origin, dotted, parse

_DATA_FILES = ("train", "validation", "test")


def load_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe file, applies overrides and validates the result.

    Relative paths in the file are relative to its folder, those in overrides to the working directory.

    Args:
        path: A YAML file.
        overrides: Entries ``key.path=value``, the value in YAML; they win over the file and may add keys.

    Raises:
        RecipeError: The file cannot be read, or anything in it or in an override is wrong; carries every problem.
    """
    document = parse(_read(Path(path)), Origin(os.fspath(path), Path(path).absolute().parent))
    if document.value is None:
        raise _unreadable(path, "is empty; should be a mapping with at least model and task")
    if not isinstance(document.value, dict):
        raise _unreadable(path, "should be a mapping with at least model and task")
    for override in overrides:
        _override(document, override)
    _use_long_form(document)
    _resolve_paths(document)
    try:
        recipe = Recipe.model_validate(document.value, context=document)
    except RecipeError as error:
        raise RecipeError(_without_echoes(document.problems, error.problems)) from None
    if document.problems:
        raise RecipeError(in_order(document.problems))
    recipe._document = document
    return recipe


def _unreadable(path: str | os.PathLike[str], message: str) -> RecipeError:
    return RecipeError([Problem("recipe", "", message, os.fspath(path), 1, 1)])


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise RecipeError([Problem("recipe", "", "there is no such file", os.fspath(path))]) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError([Problem("recipe", "", f"cannot be read: {reason}", os.fspath(path))]) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", errors="replace").split("\n")
        message = "is not UTF-8 text; save it in that encoding"
        found = f"byte 0x{data[error.start]:02x}"
        place = (os.fspath(path), len(before), len(before[-1]) + 1)
        raise RecipeError([Problem("recipe", found, message, *place)]) from error


def _without_echoes(found: list[Problem], invalid: Sequence[Problem]) -> list[Problem]:
    """Both kinds in file order; a value that could not even be read is not complained about again."""
    unread = {(problem.field, problem.line) for problem in found}
    return in_order([*found, *(problem for problem in invalid if (problem.field, problem.line) not in unread)])


def _override(document: Document, override: str) -> None:
    """Puts one ``key.path=value`` into the document, or notes why it cannot."""
    key, equals, text = override.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    origin = Origin(f"--set {override}", Path.cwd(), has_lines=False)
    if not equals or not all(path):
        message = "should be key.path=value, as in plan.keep_ratio=0.5"
        document.problems.append(Problem(key or "--set", "", message, origin.name))
        return
    try:
        part = parse(text, origin, path)
    except RecipeError as error:
        document.problems.extend(error.problems)
        return
    _use_long_form(document)
    section = document.value
    for depth, name in enumerate(path[:-1], start=1):
        if section.get(name) is None:
            section[name] = {}
        section = section[name]
        if not isinstance(section, dict):
            outer = dotted(path[:depth])
            message = f"{outer} is no mapping, so it has no key {path[depth]!r}; set {outer} as a whole"
            document.problems.append(Problem(dotted(path), text, message, origin.name))
            return
    _forget(document, dotted(path))
    section[path[-1]] = part.value
    document.places.update(part.places)
    document.problems.extend(part.problems)


def _forget(document: Document, name: str) -> None:
    """Drops places and problems of a field that is replaced."""
    inside = (f"{name}.", f"{name}[")
    document.places = {key: at for key, at in document.places.items() if key != name and not key.startswith(inside)}
    document.problems = [p for p in document.problems if p.field != name and not p.field.startswith(inside)]


def _use_long_form(document: Document) -> None:
    """Turns ``model: NAME`` into ``model: {name: NAME}``, so that overrides can add to it."""
    if isinstance(document.value.get("model"), str):
        document.value["model"] = {"name": document.value["model"]}
        document.places["model.name"] = document.places["model"]


def _resolve_paths(document: Document) -> None:
    """Makes paths absolute, each relative to where it was written."""
    model: Any = document.value.get("model")
    if isinstance(model, dict) and isinstance(model.get("name"), str) and not model["name"].startswith(BUILTIN):
        name: str = model["name"]
        path = absolute(name, document.place("model.name").origin.folder)
        model["name"] = path if looks_like_path(name) or os.path.exists(path) else name
    task: Any = document.value.get("task")
    data: Any = task.get("data") if isinstance(task, dict) else None
    for split in _DATA_FILES if isinstance(data, dict) else ():
        if isinstance(data.get(split), str):
            data[split] = absolute(data[split], document.place(f"task.data.{split}").origin.folder)
    recovery: Any = document.value.get("recovery")
    if isinstance(recovery, dict) and isinstance(recovery.get("data"), str):
        recovery["data"] = absolute(recovery["data"], document.place("recovery.data").origin.folder)
