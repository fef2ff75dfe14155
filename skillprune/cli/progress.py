"""Draws progress: bars where a person watches a terminal, a line per piece of work in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from skillprune.progress import Progress


@contextmanager
def shown_progress(console: Console) -> Iterator[Progress]:
    """A progress callback for the time of the context, drawn on ``console``."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console) as bars:
        yield _Bars(bars)


class _Lines:
    """One plain line when a piece of work starts to run and one when it is done, with its seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started: dict[str, float] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._started:
            self._started[what] = time.monotonic()
            self._print(f"{what} ...")
        if done == total:
            seconds = time.monotonic() - self._started.pop(what)
            self._print(f"{what}: done ({seconds:.1f} s)")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)


class _Bars:
    """One bar per piece of work."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)
