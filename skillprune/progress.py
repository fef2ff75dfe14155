"""How long work tells how far it is; drawing bars or lines is left to the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """Called with what is being done, how many steps are done, and how many there are."""

    def __call__(self, what: str, done: int, total: int) -> None: ...


def silent(what: str, done: int, total: int) -> None:
    """The progress callback of library users who did not ask for one: says nothing."""


def track(items: Sequence[Item], what: str, progress: Progress) -> Iterator[Item]:
    """Yields ``items``, reporting before the first and after each one."""
    progress(what, 0, len(items))
    for done, item in enumerate(items, start=1):
        yield item
        progress(what, done, len(items))
