"""YAML text as plain values that remember where each of them stands; what the values mean is left to the schema."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from skillprune.errors import Problem, RecipeError

# YAML 1.1 reads 1e-3 as text because it has no dot; nobody who writes it means text.
_EXPONENT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+$")
_RARE_BREAK = re.compile("[\x85\u2028\u2029]")
_FLOAT = "tag:yaml.org,2002:float"


class RecipeLoader(yaml.SafeLoader):
    """The safe loader that also reads numbers such as ``1e-3``."""


class RecipeDumper(yaml.SafeDumper):
    """The safe dumper that quotes every text which `RecipeLoader` would read as something else."""

    def represent_text(self, text: str) -> yaml.Node:
        """A text; one with a rare line break is escaped, because single quotes would read it back as a space."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if _RARE_BREAK.search(text) else None)


RecipeDumper.add_representer(str, RecipeDumper.represent_text)
RecipeLoader.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+.0123456789"))
RecipeDumper.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+.0123456789"))


@dataclass(frozen=True)
class Origin:
    """What a piece of YAML was read from: how it is called, what its relative paths start from, whether lines count."""

    name: str
    folder: Path
    has_lines: bool = True


@dataclass(frozen=True)
class Place:
    """Where a value and its key stand (lines and columns from 1; 0 where there are none), and its text."""

    origin: Origin
    line: int
    column: int
    key_line: int
    key_column: int
    text: str


@dataclass(eq=False)
class Document:
    """Values of a recipe, the place of every dotted field, and what was wrong already.

    Any two are equal: where a recipe was written down does not make it another recipe.
    """

    value: Any
    places: dict[str, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Document)

    __hash__ = None  # type: ignore[assignment]  # it changes while it is read

    def place(self, name: str) -> Place:
        """The place of the field ``name``, or of the nearest section around it that was written down."""
        while name not in self.places and name:
            name = name[: max(name.rfind("."), name.rfind("["), 0)]
        return self.places[name]

    def problem(self, name: str, message: str, *, at_key: bool = False) -> Problem:
        """A problem of the field ``name`` that carries its place and text."""
        place = self.place(name)
        line, column = (place.key_line, place.key_column) if at_key else (place.line, place.column)
        value = place.text if name in self.places and not at_key else ""
        return Problem(name or "recipe", value, message, place.origin.name, line, column)


def dotted(path: tuple[str | int, ...]) -> str:
    """The name of a field: ``("shapes", 0, "x")`` is ``shapes[0].x``."""
    name = ""
    for part in path:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name


def parse(text: str, origin: Origin, path: tuple[str | int, ...] = ()) -> Document:
    """Values and places of a YAML text.

    Args:
        text: One YAML document.
        origin: What the text was read from.
        path: Field that the text is the value of; empty for a whole recipe.

    Raises:
        RecipeError: The text is not YAML.
    """
    line = int(origin.has_lines)
    document = Document(None, {dotted(path): Place(origin, line, line, line, line, "")})
    try:
        loader = RecipeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            document.value = _Walk(loader, origin, document).value(node, path, None)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = f"is not YAML: {error.problem or error.context}"
        raise _broken(origin, path, message, mark.line if mark else 0, mark.column if mark else 0) from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position].split("\n")
        message = f"is not YAML: the character {chr(error.character)!r} is not allowed"
        raise _broken(origin, path, message, len(before) - 1, len(before[-1])) from error
    except RecursionError as error:
        raise _broken(origin, path, "is nested too deeply", 0, 0) from error
    return document


def _broken(origin: Origin, path: tuple[str | int, ...], message: str, line: int, column: int) -> RecipeError:
    where = (line + 1, column + 1) if origin.has_lines else (0, 0)
    return RecipeError([Problem(dotted(path) or "recipe", "", message, origin.name, *where)])


class _Walk:
    """One walk over a node tree that fills a document; every node is visited once."""

    def __init__(self, loader: RecipeLoader, origin: Origin, document: Document) -> None:
        self.loader = loader
        self.origin = origin
        self.document = document
        self.seen: set[int] = set()

    def value(self, node: yaml.Node, path: tuple[str | int, ...], key: yaml.Node | None) -> Any:
        """The plain value of a node; its place is noted, and so is every problem, for which None stands in."""
        name = dotted(path)
        self.document.places[name] = self.place(node, key)
        if id(node) in self.seen:  # would let a few lines grow without bound
            return self.wrong(name, "is an alias; write the value out")
        self.seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index), None) for index, item in enumerate(node.value)]
        try:
            return self.loader.construct_object(node)
        except yaml.constructor.ConstructorError:
            return self.wrong(name, f"has the tag {node.tag}; only plain values are read")
        except ValueError as error:
            return self.wrong(name, f"cannot be read: {error}; quote it if it is text")

    def mapping(self, node: yaml.MappingNode, path: tuple[str | int, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                place = self.place(key, key)
                message = "has a key that is not plain text"
                problem = Problem(dotted(path) or "recipe", "", message, self.origin.name, place.line, place.column)
                self.document.problems.append(problem)
                continue
            first = self.document.places.get(dotted((*path, key.value)))
            value = self.value(item, (*path, key.value), key)
            if key.value in values and first is not None:
                self.wrong(dotted((*path, key.value)), self.repeated(first), at_key=True)
            values[key.value] = value
        return values

    def repeated(self, first: Place) -> str:
        where = f" on line {first.key_line}" if first.key_line else ""
        return f"is given twice, first{where}; keep one" if where else "is given twice; keep one"

    def wrong(self, name: str, message: str, *, at_key: bool = False) -> None:
        self.document.problems.append(self.document.problem(name, message, at_key=at_key))

    def place(self, node: yaml.Node, key: yaml.Node | None) -> Place:
        """Where a node and its key begin, counted from 1, with the beginning of its text."""
        start, key_start = node.start_mark, (key or node).start_mark
        text = start.buffer[start.pointer : node.end_mark.pointer] if start.buffer else ""
        text = " ".join(text.strip().rstrip("\0").split())
        text = text if len(text) <= 80 else f"{text[:77]}..."
        if not self.origin.has_lines:
            return Place(self.origin, 0, 0, 0, 0, text)
        marks = (start.line + 1, start.column + 1, key_start.line + 1, key_start.column + 1)
        return Place(self.origin, *marks, text)
