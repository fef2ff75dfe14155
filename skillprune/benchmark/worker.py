"""The process of one subject: opens it, runs it when told to, times itself; ``python -m skillprune.benchmark.worker``.

What to run when is left to the process that started it, `processes`.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import psutil

from skillprune.benchmark.messages import ERRORS, Arrays, receive, send
from skillprune.benchmark.runtimes import Once, Opened, open_here
from skillprune.benchmark.timing import timed
from skillprune.benchmark.values import Subject

STATUS = Path("/proc/self/status")
LOOK_S, LOOKS, LONGEST_S = 0.005, 4, 0.5  # Linux may count time of other threads in steps of 4 ms


class Worker:
    """Answers requests in this order: ``open`` a subject, ``feed`` it the inputs of a shape, ``run`` it on them."""

    def __init__(self) -> None:
        self._opened: Opened | None = None
        self._once: Once | None = None
        self._answers: Mapping[str, Callable[[Mapping[str, Any], Arrays], dict[str, Any]]] = {
            "open": self._open,
            "feed": self._feed,
            "run": self._run,
        }

    def answer(self, request: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
        """Does what a request asks for; an error of `ERRORS` becomes an answer as well."""
        try:
            return self._answers[request["do"]](request, arrays)
        except tuple(ERRORS.values()) as error:
            return {"error": type(error).__name__, "message": str(error)}

    def _open(self, request: Mapping[str, Any], _: Arrays) -> dict[str, Any]:
        subject = Subject(**{**request["subject"], "path": Path(request["subject"]["path"])})
        self._opened = open_here(subject, threads=request["threads"], provider=request["provider"])
        return {"provider": self._opened.provider, "version": self._opened.version}

    def _feed(self, request: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
        if self._opened is None:
            raise ValueError("inputs came before anything was opened")
        self._once = self._opened.feed(arrays, request["what"], request["phase"])
        # What lives now lives on, and need not be looked at again; the rest is collected between samples.
        gc.collect()
        gc.freeze()
        gc.disable()
        return {}

    def _run(self, request: Mapping[str, Any], _: Arrays) -> dict[str, Any]:
        if self._once is None or self._opened is None:
            raise ValueError("there are no inputs to run on")
        gc.collect()
        took_ns = timed(self._once)(request["repeats"])
        if self._opened.spins:
            wait_for_sleep()
        return {"ns": took_ns, "peak_rss_mib": peak_rss_mib()}


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Answers every request until the stream ends, because the other side closed it or died."""
    worker = Worker()
    while (message := receive(requests)) is not None:
        send(replies, worker.answer(*message))


def wait_for_sleep() -> None:
    """Waits until no thread of this process computes: whoever is timed next shall have the cores to itself."""
    last, quiet = time.monotonic() + LONGEST_S, 0
    while quiet < LOOKS and time.monotonic() < last:
        before = time.process_time()
        time.sleep(LOOK_S)
        quiet = quiet + 1 if time.process_time() - before < LOOK_S / 10 else 0


def peak_rss_mib() -> float | None:
    """Most memory that this process ever held resident, in MiB; None where the system does not tell.

    Linux's ``ru_maxrss`` is of no use here: a process inherits it from the one that started it.
    """
    if STATUS.is_file():
        found = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(encoding="utf-8"), re.MULTILINE)
        return int(found[1]) / 2**10 if found else None
    peak = getattr(psutil.Process().memory_info(), "peak_wset", None)  # Windows
    return None if peak is None else peak / 2**20


def main() -> None:
    """Serves the process that started this one over standard input and output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the one that started this one ends it
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not come between the replies
    serve(requests, replies)


if __name__ == "__main__":
    main()
