"""One example and the checks that turn a row into it; where rows come from is left to rows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skillprune.errors import DataError
from skillprune.tasks import Task

_PROBLEMS_SHOWN = 10


@dataclass(frozen=True)
class Example:
    """One text, or the two of a pair, with its class number or the text to write, as the task has them."""

    texts: tuple[str, ...]
    label: int = 0
    target: str = ""


@dataclass(frozen=True)
class Row:
    """One row of a source: where it stands, its values, or why it cannot be read."""

    where: str
    values: Mapping[str, Any]
    broken: str | None = None


def check_columns(source: str, columns: Sequence[str], task: Task) -> None:
    """Sees to it that a source has every column of the task, each once.

    Raises:
        DataError: A column is missing or not unique.
    """
    for field, column in _fields(task):
        if column not in columns:
            raise DataError(f"{source}: {missing_column(field, column, columns)}")
        if columns.count(column) > 1:
            raise DataError(f"{source}: {field}: there are {columns.count(column)} columns {column!r}; rename one")


def missing_column(field: str, column: str, columns: Sequence[str]) -> str:
    """A sentence on a column that is not there: those that are, and the one that was probably meant."""
    close = difflib.get_close_matches(column, columns, n=1, cutoff=0.6)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"{field}: there is no column {column!r}; {guess}columns: {', '.join(columns)}"


def to_examples(source: str, rows: Iterable[Row], task: Task) -> tuple[Example, ...]:
    """All rows as examples.

    Args:
        source: What the rows come from, for messages.
        rows: Its rows.
        task: Names the columns and the labels.

    Raises:
        DataError: There are no rows, or some are wrong; the message lists the first ten problems.
    """
    examples: list[Example] = []
    problems: list[str] = []
    for row in rows:
        found = list(_problems(row, task))
        problems += [f"{row.where}: {problem}" for problem in found]
        if len(problems) >= _PROBLEMS_SHOWN:
            problems = [*problems[:_PROBLEMS_SHOWN], f"{source}: there may be more; these are the first"]
            break
        if not found:
            examples.append(_example(row, task))
    if problems:
        raise DataError("\n".join(problems))
    if not examples:
        raise DataError(f"{source}: holds no examples; should have at least one row")
    return tuple(examples)


def label_text(value: Any) -> str:
    """A label as text; a whole number that a file format turned into a float is written without its point."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def columns_of(task: Task) -> list[str]:
    """Every column that a task reads: texts first, then label or target."""
    return [column for _, column in _fields(task)]


def _fields(task: Task) -> list[tuple[str, str]]:
    """The columns of a task, each after the key of the recipe that names it."""
    fields = [("task.text", column) for column in task.text]
    if task.classifies:
        fields.append(("task.label", task.label))
    if task.target is not None:
        fields.append(("task.target", task.target))
    return fields


def _example(row: Row, task: Task) -> Example:
    texts = tuple(row.values[column] for column in task.text)
    label = task.label_id(label_text(row.values[task.label])) if task.classifies else 0
    return Example(texts, label, "" if task.target is None else row.values[task.target])


def _problems(row: Row, task: Task) -> Iterator[str]:
    if row.broken is not None:
        yield row.broken
        return
    for field, column in _fields(task):
        if column not in row.values:
            yield missing_column(field, column, list(row.values))
        elif field == "task.label":
            yield from _label_problems(task, label_text(row.values[column]))
        else:
            yield from _text_problems(column, row.values[column])


def _text_problems(column: str, value: Any) -> Iterator[str]:
    if value is None or (isinstance(value, str) and not value.strip()):
        yield f"column {column!r}: the text is empty; remove the row or fill it in"
    elif not isinstance(value, str):
        yield f"column {column!r}: should be text (found {value!r})"


def _label_problems(task: Task, value: str) -> Iterator[str]:
    if not value.strip():
        yield f"column {task.label!r}: the label is missing; remove the row or fill it in"
        return
    try:
        task.label_id(value)
    except DataError as error:
        yield f"column {task.label!r}: {error}"
