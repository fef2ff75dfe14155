"""Starts, asks and ends the worker processes that subjects are timed in; what they do inside is left to `worker`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from skillprune.benchmark.messages import ERRORS, Arrays, receive, send
from skillprune.benchmark.timing import Prepare, Run
from skillprune.benchmark.values import Point, Subject
from skillprune.errors import ResourceFailure

ISOLATION = "one process per subject, its idle threads asleep between runs"
WORKER = "skillprune.benchmark.worker"
ROOT = Path(__file__).resolve().parents[2]  # where this very package is imported from
SLEEP_SOON = {"KMP_BLOCKTIME": "10"}  # milliseconds; Intel's OpenMP spins for 200 into the next subject's turn
SAID = 2000  # bytes of a dead worker's last words that are repeated


@dataclass(frozen=True)
class Inputs:
    """What is run, and what it feeds to all subjects."""

    point: Point
    arrays: Arrays


@dataclass
class Facts:
    """What the workers of one subject said of themselves.

    Attributes:
        provider: what really ran it.
        version: of the library that ran it.
        peaks_mib: by shape, the peak memory after the last run of every opening.
    """

    provider: str = ""
    version: str = ""
    peaks_mib: dict[int, list[float | None]] = field(default_factory=dict)

    def peak_mib(self, shape: int) -> float | None:
        """Smallest peak of a shape: an opening that ran a larger shape before says nothing about this one.

        Of more shapes than there are openings some never come first, and may be told that of a larger one.
        """
        told = [each for each in self.peaks_mib.get(shape, []) if each is not None]
        return min(told, default=None)


@contextmanager
def open_worker(
    subject: Subject, shapes: Sequence[Inputs], facts: Facts, *, threads: int, provider: str
) -> Iterator[Prepare]:
    """Opens a subject in a process of its own, which ends with the context.

    The process starts and opens the subject while the caller goes on, so several start at once; what is yielded waits
    for it.

    Args:
        subject: what to time.
        shapes: inputs; the numbers that the yielded callable takes are places in this sequence.
        facts: written to, whenever the worker says something of itself.
        threads: threads that compute inside one operator.
        provider: ``cpu`` or ``cuda``.

    Raises:
        ProviderUnavailable: the provider is unknown, not installed, or not the one that runs.
        CheckpointError: the file or directory is missing or unreadable.
        DataError: the model does not take the inputs, or cannot run a shape.
        ResourceFailure: the process died, or memory ran out.
    """
    with tempfile.TemporaryFile() as said, _started(said, threads) as process:
        worker = _Worker(process, said, str(subject.path))
        worker.tell({"do": "open", "subject": _plain(subject), "threads": threads, "provider": provider})
        waiting = True

        def prepare(shape: int) -> Run:
            nonlocal waiting
            if waiting:
                opened = worker.hear()
                facts.provider, facts.version = opened["provider"], opened["version"]
                waiting = False
            point, arrays = shapes[shape].point, shapes[shape].arrays
            worker.ask({"do": "feed", "what": f"{subject.path} at {point}", "phase": point.phase}, arrays)
            peaks = facts.peaks_mib.setdefault(shape, [])
            peaks.append(None)

            def run(repeats: int) -> int:
                answer = worker.ask({"do": "run", "repeats": repeats})
                peaks[-1] = answer["peak_rss_mib"]
                return int(answer["ns"])

            return run

        yield prepare


@contextmanager
def _started(said: IO[bytes], threads: int) -> Iterator[subprocess.Popen[bytes]]:
    """A worker, killed at the end: there is nothing in it to be kept."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**SLEEP_SOON, **os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)}
    # -P: files of the working directory are not taken for modules.
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        env=environment,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        with suppress(OSError):  # what could not be sent any more
            process.stdin.close()


@dataclass(frozen=True)
class _Worker:
    """The near ends of a worker's pipes."""

    process: subprocess.Popen[bytes]
    said: IO[bytes]
    what: str

    def ask(self, request: Mapping[str, Any], arrays: Arrays | None = None) -> dict[str, Any]:
        self.tell(request, arrays)
        return self.hear()

    def tell(self, request: Mapping[str, Any], arrays: Arrays | None = None) -> None:
        assert self.process.stdin is not None
        try:
            send(self.process.stdin, request, arrays)
        except OSError as broken:
            raise self._death() from broken

    def hear(self) -> dict[str, Any]:
        """The answer; an error that the worker met is raised here."""
        assert self.process.stdout is not None
        try:
            message = receive(self.process.stdout)
        except EOFError as broken:
            raise self._death() from broken
        if message is None:
            raise self._death()
        if "error" in message.header:
            raise ERRORS[message.header["error"]](message.header["message"])
        return message.header

    def _death(self) -> ResourceFailure:
        code = self.process.wait()
        self.said.seek(0)
        words = self.said.read()[-SAID:].decode(errors="replace").strip()
        ended = f"signal {-code}, as when memory runs out" if code < 0 else f"exit code {code}"
        return ResourceFailure(f"{self.what}: the process that timed it ended with {ended}" + (words and f": {words}"))


def _plain(subject: Subject) -> dict[str, Any]:
    return {**asdict(subject), "path": str(subject.path)}
