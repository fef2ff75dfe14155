"""Rows of a split from files, the hub or the embedded demo; which split is for what is left to splits."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

import pyarrow
import pyarrow.parquet

from skillprune.data.examples import Example, Row, check_columns, columns_of, to_examples
from skillprune.data.hub import hub_rows
from skillprune.demo import reviews
from skillprune.errors import DataError, ResourceFailure
from skillprune.recipe import BuiltinData, FileData, HubData, HubSplit
from skillprune.tasks import Task


def read_examples(task: Task, split: str) -> tuple[Example, ...]:
    """All examples of one split, in the order of the source.

    Args:
        task: Says where the examples are and which columns count.
        split: ``train``, ``validation`` or ``test``.

    Raises:
        DataError: A column is missing, rows are wrong (the first ten are listed), or there are none.
        ResourceFailure: The disk or the network failed.
    """
    if isinstance(task.data, FileData):
        return _from_file(Path(getattr(task.data, split)), task)
    if isinstance(task.data, HubData):
        source, rows = hub_rows(task.data, getattr(task.data.splits, split), task)
        return to_examples(source, rows, task)
    return _from_demo(task.data, split, task)


def read_part(task: Task, part: Path | HubSplit) -> tuple[Example, ...]:
    """All examples of a file or of one split of a hub data set, with the columns of a task; raises as reading does."""
    if isinstance(part, Path):
        return _from_file(part, task)
    source, rows = hub_rows(part, part.split, task)
    return to_examples(source, rows, task)


def has_split(task: Task, split: str) -> bool:
    """Whether the task's data name this split."""
    if isinstance(task.data, BuiltinData):
        return True
    holder = task.data if isinstance(task.data, FileData) else task.data.splits
    return getattr(holder, split) is not None


def _from_demo(data: BuiltinData, split: str, task: Task) -> tuple[Example, ...]:
    source = f"builtin:{data.name} {split}"
    rows = reviews(split)
    check_columns(source, list(rows[0]), task)
    return to_examples(source, (Row(f"{source} row {number}", row) for number, row in enumerate(rows, start=1)), task)


def _from_file(path: Path, task: Task) -> tuple[Example, ...]:
    try:
        return to_examples(str(path), _READERS[path.suffix.lower()](path, task), task)
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x}"
        raise DataError(
            f"{path}:{_bad_line(path)}: is not UTF-8 text (found {found}); save it in that encoding"
        ) from error
    except OSError as error:
        raise ResourceFailure(f"{path}: cannot be read: {error.strerror or error}") from error


def _bad_line(path: Path) -> int:
    """The first line of a file that is not UTF-8, counted from 1."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 0


def _open(path: Path) -> TextIO:
    return path.open(encoding="utf-8-sig", newline="")


def _separated(delimiter: str) -> Callable[[Path, Task], Iterator[Row]]:
    """A reader of files whose columns are parted by ``delimiter`` and whose first row names them."""

    def rows(path: Path, task: Task) -> Iterator[Row]:
        with _open(path) as file:
            # strict: otherwise a quote that is never closed silently swallows the rest of the file
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            line = 1
            try:
                header = next(reader, None)
                if header is None:
                    return
                check_columns(f"{path}:1", header, task)
                line = reader.line_num + 1
                for cells in reader:
                    if cells:
                        yield _cells(f"{path}:{line}", header, cells)
                    line = reader.line_num + 1
            except csv.Error as error:
                raise DataError(f"{path}:{line}: the row that starts here cannot be read: {error}") from error

    return rows


def _cells(where: str, header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        return Row(
            where, {}, f"has {len(cells)} values; should have {len(header)}, one per column: {', '.join(header)}"
        )
    return Row(where, dict(zip(header, cells, strict=True)))


def _json_lines(path: Path, task: Task) -> Iterator[Row]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _json_row(f"{path}:{number}", line)


def _json_row(where: str, line: str) -> Row:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Row(where, {}, f"should be one JSON object per line: {error}")
    if not isinstance(values, dict):
        return Row(where, {}, f"should be one JSON object per line (found {line.strip()[:40]})")
    return Row(where, values)


def _parquet(path: Path, task: Task) -> Iterator[Row]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            check_columns(str(path), file.schema_arrow.names, task)
            number = 0
            for batch in file.iter_batches(columns=columns_of(task)):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path} row {number}", values)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error


_READERS: Mapping[str, Callable[[Path, Task], Iterator[Row]]] = {
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".jsonl": _json_lines,
    ".json": _json_lines,
    ".parquet": _parquet,
}
