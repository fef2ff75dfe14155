"""Turns whatever ends a command into one message and the right exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from skillprune.errors import SkillPruneError

INTERRUPTED = 130
OUTSIDE_FAILURE = 3


@contextmanager
def exit_codes(console: Console, *, debug: bool) -> Iterator[None]:
    """Ends the process with the exit code of the error raised inside; with ``debug`` the traceback is shown instead."""
    try:
        yield
    except SkillPruneError as error:
        if debug:
            raise
        _end(console, str(error), error.exit_code)
    except KeyboardInterrupt:
        _end(console, "interrupted; finished stages are kept, run the same command again to go on", INTERRUPTED)
    except MemoryError as error:
        if debug:
            raise
        _end(console, f"out of memory: {error or 'the machine has too little for this model'}", OUTSIDE_FAILURE)
    except typer.Exit:
        raise
    except OSError as error:
        if debug:
            raise
        _end(console, f"{error.filename or 'disk or network'}: {error.strerror or error}", OUTSIDE_FAILURE)
    except Exception as error:
        if debug:
            raise
        _end(console, f"unexpected {type(error).__name__}: {error}; --debug shows where", OUTSIDE_FAILURE)


def _end(console: Console, message: str, code: int) -> None:
    console.print(f"error: {message}", style="bold red", markup=False, emoji=False, highlight=False, soft_wrap=True)
    sys.exit(code)
