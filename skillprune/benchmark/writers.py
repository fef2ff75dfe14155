"""Opens the ONNX files of a model that writes on exactly the provider asked for; what it writes is `generation`'s."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from skillprune.benchmark.sessions import open_session
from skillprune.generation import Writer, load_writer


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
    return load_writer(directory, partial(open_session, threads=threads, provider=provider))
