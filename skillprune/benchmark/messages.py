"""The wire between a measurement and its workers: JSON headers, NumPy arrays; what they mean is left to `worker`."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skillprune.errors import (
    CheckpointError,
    DataError,
    PlanMismatch,
    ProviderUnavailable,
    ResourceFailure,
    SkillPruneError,
    UnsupportedArchitecture,
)

Arrays = Mapping[str, NDArray[np.generic]]

# Errors that a worker tells about; any other one ends it.
ERRORS: Mapping[str, type[SkillPruneError]] = {
    each.__name__: each
    for each in (
        CheckpointError,
        DataError,
        PlanMismatch,
        ProviderUnavailable,
        ResourceFailure,
        UnsupportedArchitecture,
    )
}
LENGTH = struct.Struct(">Q")
ARRAYS = "arrays"


class Message(NamedTuple):
    """A JSON object, and arrays by name."""

    header: dict[str, Any]
    arrays: dict[str, NDArray[np.generic]]


def send(stream: IO[bytes], header: Mapping[str, Any], arrays: Arrays | None = None) -> None:
    """Writes the length of the header, the header, then every array in the ``.npy`` format; nothing is pickled.

    Raises:
        OSError: nobody reads any more.
        ValueError: an array holds objects.
    """
    files = {name: _npy(array) for name, array in (arrays or {}).items()}
    text = json.dumps({**header, ARRAYS: {name: len(file) for name, file in files.items()}}).encode()
    stream.write(LENGTH.pack(len(text)) + text)
    for file in files.values():
        stream.write(file)
    stream.flush()


def receive(stream: IO[bytes]) -> Message | None:
    """The next message, None where the stream ends instead.

    Raises:
        EOFError: the stream ends in the middle of a message.
    """
    start = stream.read(LENGTH.size)
    if not start:
        return None
    (length,) = LENGTH.unpack(_whole(start, LENGTH.size))
    header = json.loads(_whole(stream.read(length), length))
    sizes = header.pop(ARRAYS)
    files = {name: io.BytesIO(_whole(stream.read(size), size)) for name, size in sizes.items()}
    return Message(header, {name: np.load(file, allow_pickle=False) for name, file in files.items()})


def _npy(array: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _whole(read: bytes, size: int) -> bytes:
    if len(read) != size:
        raise EOFError(f"a message of {size} bytes ended after {len(read)}")
    return read
