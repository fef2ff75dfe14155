"""Rows of a data set on the Hugging Face hub; files and the embedded demo are left to rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from skillprune.data.examples import Row, check_columns, columns_of
from skillprune.errors import DataError, ResourceFailure
from skillprune.recipe import HubData, HubSplit
from skillprune.tasks import Task

# Packages whose errors mean that the other side could not be reached or refused.
_NETWORK = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp", "huggingface_hub"})


def hub_rows(data: HubData | HubSplit, split: str, task: Task) -> tuple[str, Iterator[Row]]:
    """What the split is called in messages, and its rows.

    Raises:
        DataError: There is no such data set, configuration, split or column.
        ResourceFailure: It could not be downloaded.
    """
    source = " ".join(filter(None, (data.hub, data.config, split)))
    loaded = _load(data, split, source)
    check_columns(source, list(loaded.column_names), task)
    names = _class_names(loaded.features[task.label], task.labels) if task.classifies else None
    return source, _rows(loaded.select_columns(columns_of(task)), source, task.label, names)


def _load(data: HubData | HubSplit, split: str, source: str) -> Any:
    import datasets  # slow to import, and only hub data need it

    try:
        return datasets.load_dataset(data.hub, name=data.config, split=split, revision=data.revision)
    except (FileNotFoundError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{source}: no such data set, configuration or split: {error}") from error
    except Exception as error:
        # Every HTTP library of every version has its own tree of errors, so they are told by where they come from.
        if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _NETWORK:
            raise ResourceFailure(f"{source}: could not be downloaded: {error}") from error
        raise


def _class_names(feature: Any, labels: Sequence[str]) -> list[str] | None:
    """The label names behind a data set's class numbers, in the checkpoint's spelling.

    Data set and checkpoint may number the same names differently. None if the names do not match or there are none:
    then the numbers count.
    """
    names = getattr(feature, "names", None)
    spelling = {label.casefold(): label for label in labels}
    if names is None or {name.casefold() for name in names} != set(spelling):
        return None
    return [spelling[name.casefold()] for name in names]


def _rows(loaded: Any, source: str, label: str, names: list[str] | None) -> Iterator[Row]:
    for number, row in enumerate(loaded, start=1):
        value = row.get(label)
        if names is not None and isinstance(value, int) and 0 <= value < len(names):
            row = {**row, label: names[value]}
        yield Row(f"{source} row {number}", row)
