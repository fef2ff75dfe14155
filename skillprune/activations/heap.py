"""Gives freed memory back to the operating system, which the C library by itself keeps for later."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def release_freed_memory() -> None:
    """Returns freed pages from the middle of the heap, where glibc has a call for that; elsewhere does nothing.

    Tensors whose sizes differ from batch to batch leave holes that the next ones do not fit into. Kept holes would make
    a process grow from batch to batch, though nothing is held.
    """
    if trim := _malloc_trim():
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
