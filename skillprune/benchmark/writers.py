"""Opens the ONNX files of a model that writes on exactly the provider asked for; what it writes is `generation`'s."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnxruntime

from skillprune.benchmark.binding import LIBRARY, REFUSED
from skillprune.benchmark.messages import Arrays
from skillprune.benchmark.runtimes import Once, refusal
from skillprune.benchmark.sessions import check_provider, open_session
from skillprune.benchmark.values import Phase, Subject
from skillprune.generation import Feeds, Writer, load_writer


def open_writer(directory: Path, *, threads: int, provider: str = "cpu") -> Writer:
    """Opens the writer in a directory, with sessions as they are timed.

    Args:
        directory: what `export_decoder` or `export_encoder_decoder` wrote.
        threads: threads that compute inside one operator.
        provider: ``cpu`` or ``cuda``; on the latter the cache never leaves the device.

    Raises:
        ProviderUnavailable: the provider is unknown, not installed, or the session fell back to another one.
        CheckpointError: a file is missing, or ONNX Runtime cannot read it.
    """
    check_provider(provider)
    return load_writer(directory, partial(open_session, threads=threads, provider=provider))


@dataclass(frozen=True)
class OpenedWriter:
    """An open writer, ready for texts.

    Attributes:
        writer: its sessions.
        provider: of all of them; `open_session` lets no other one run.
    """

    writer: Writer
    provider: str

    @property
    def version(self) -> str:
        """Version of ONNX Runtime."""
        return str(onnxruntime.__version__)

    @property
    def spins(self) -> bool:
        """Not at all: sessions have their threads stop."""
        return False

    def feed(self, inputs: Arrays, what: str, phase: Phase) -> Once:
        """Reads texts, or has read them and goes on by one token, again and again the same; see `Opened.feed`."""
        texts: Feeds = inputs  # type: ignore[assignment]  # of token ids
        try:
            run = PHASES[phase](self.writer, texts)
            run()
        except REFUSED as error:
            raise refusal(what, LIBRARY, error) from error
        return run


def open_subject(subject: Subject, threads: int, provider: str) -> OpenedWriter:
    """Opens the directory of a subject, see `runtimes.open_here`."""
    return OpenedWriter(open_writer(subject.path, threads=threads, provider=provider), provider)


def _everywhere(writer: Writer, texts: Feeds) -> Once:
    return lambda: writer.logits(texts)


def _first_token(writer: Writer, texts: Feeds) -> Once:
    return lambda: writer.read(texts)


def _next_token(writer: Writer, texts: Feeds) -> Once:
    said, state = writer.read(texts)
    likeliest = said.argmax(axis=1)
    return lambda: writer.step(likeliest, state)


PHASES: dict[Phase, Callable[[Writer, Feeds], Once]] = {
    "forward": _everywhere,
    "first token": _first_token,
    "next token": _next_token,
}
