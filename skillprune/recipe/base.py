"""What all sections of the recipe share: the frozen base, strict scalars, path checks; knows no section."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Strict

#: A string is not a number and ``true`` is not one either; a whole number is a fine float.
StrictInt = Annotated[int, Strict()]
StrictFloat = Annotated[float, Strict()]
Name = Annotated[str, Strict(), Field(min_length=1)]

#: File name endings of data files, all lower case.
DATA_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


class Spec(BaseModel):
    """A frozen section of the recipe that refuses unknown keys and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def looks_like_path(name: str) -> bool:
    """Whether ``name`` can only be meant as a path: it starts with ``./``, ``../``, ``/`` or ``~``."""
    return name in (".", "..") or name.startswith(("./", "../", "/", "~"))


def absolute(path: str, folder: str | os.PathLike[str] = "") -> str:
    """``path`` without ``~`` and ``..``, taken relative to ``folder`` (by default the working directory)."""
    return os.path.abspath(os.path.join(folder, os.path.expanduser(path)))


def without_repeats(values: tuple[object, ...]) -> tuple[object, ...]:
    """``values`` unchanged.

    Raises:
        ValueError: A value occurs twice.
    """
    for position, value in enumerate(values):
        if value in values[:position]:
            shown = list(value) if isinstance(value, tuple) else value
            raise ValueError(f"lists {shown!r} twice; each may be listed once")
    return values
