"""Pydantic's complaints in the words and places of the recipe; finding the complaints is left to the schema."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from skillprune.errors import Problem
from skillprune.recipe.base import Spec
from skillprune.recipe.inputs import DATA_KINDS
from skillprune.recipe.recovery import PART_KINDS, HubSplit
from skillprune.recipe.source import Document, dotted
from skillprune.recipe.stages import LAYER_KINDS

_SECTIONS: dict[str, type[Spec]] = {**DATA_KINDS, "<split>": HubSplit}
_TAGS = {*_SECTIONS, *LAYER_KINDS, *PART_KINDS}

_PLAIN_WORDS = {
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "tuple_type": "should be a list",
    "path_type": "should be a path",
    "dict_type": "should be a mapping",
    "finite_number": "should be a finite number",
}


def explain(error: ValidationError, root: type[Spec], document: Document | None) -> list[Problem]:
    """One problem per complaint, in the order of the file.

    Args:
        error: What pydantic found wrong.
        root: The model it validated.
        document: Where the values came from; None for values built in Python.
    """
    complaints = error.errors(include_url=False)
    broken = {details["loc"][:depth] for details in complaints for depth in range(len(details["loc"]))}
    # a list whose entries are wrong is also called too short, because the wrong ones were not counted
    counted = [details for details in complaints if details["type"] != "too_short" or details["loc"] not in broken]
    return in_order(_explain(details, root, document) for details in counted)


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """``problems`` by line and column; those of flags, which have no line, come last."""
    return sorted(problems, key=lambda problem: (problem.line == 0, problem.line, problem.column))


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint at the entry of ``known`` that ``name`` was probably meant to be, and all that there are."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"{guess}known: {', '.join(known)}"


def _explain(details: ErrorDetails, root: type[Spec], document: Document | None) -> Problem:
    path = tuple(part for part in details["loc"] if part not in _TAGS)
    name = dotted(path)
    message = _message(details, root)
    unknown_key = details["type"] == "extra_forbidden"
    if document is not None:
        return document.problem(name, message, at_key=unknown_key)
    shown = "" if unknown_key or details["type"] == "missing" else repr(details["input"])
    return Problem(name or "recipe", shown if len(shown) <= 80 else f"{shown[:77]}...", message)


def _message(details: ErrorDetails, root: type[Spec]) -> str:
    kind, location, given = details["type"], details["loc"], details["input"]
    if kind == "extra_forbidden":
        section = _section(root, location[:-1])
        return f"unknown key; {nearest(str(location[-1]), list(section.model_fields) if section else [])}"
    if kind == "missing":
        section = _section(root, location[:-1])
        field = section.model_fields.get(str(location[-1])) if section else None
        return f"is required. {field.description}" if field and field.description else "is required"
    if kind == "model_type":
        section = _section(root, location)
        return (
            f"should be a mapping with the keys {', '.join(section.model_fields)}" if section else "should be a mapping"
        )
    if kind == "string_type":
        scalar = given is not None and not isinstance(given, (dict, list, tuple))
        return "should be text; put it in quotes" if scalar else "should be text"
    if kind in ("too_short", "too_long"):
        bounds = details["ctx"]
        least, most = bounds.get("min_length"), bounds.get("max_length")
        return f"should have at {f'least {least}' if kind == 'too_short' else f'most {most}'} entries"
    if kind in _PLAIN_WORDS:
        return _PLAIN_WORDS[kind]
    return details["msg"].removeprefix("Value error, ").replace("Input should be", "should be")


def _section(root: type[Spec], location: tuple[str | int, ...]) -> type[Spec] | None:
    """The section of the schema at a location of an error."""
    section: Any = root
    for part in location:
        if part in _SECTIONS:
            section = _SECTIONS[str(part)]
        else:
            fields = section.model_fields if _is_section(section) else {}
            section = fields[part].annotation if part in fields else None
    return section if _is_section(section) else None


def _is_section(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Spec)
