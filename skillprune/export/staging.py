"""Writes models where nobody sees them half written, in the way their source was stored, and opens them as sessions."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnxruntime
from onnx import ModelProto, TensorProto

from skillprune.errors import ResourceFailure, VerificationFailed
from skillprune.export.files import data_of
from skillprune.export.signature import Arrays

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
ERRORS_ONLY = 3  # ONNX Runtime's severities run from 0 (verbose) to 4 (fatal)


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Gives a path of the same name in a temporary directory beside ``target``; on success what lies there is moved.

    An older file stays until then. The model is moved last, after the file of its weights if it has one.

    Raises:
        ResourceFailure: something could not be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            fresh = Path(folder) / target.name
            yield fresh
            made = sorted(Path(folder).iterdir(), key=lambda path: path == fresh)
            for written in made:
                os.replace(written, target.with_name(written.name))
            if made == [fresh]:
                data_of(target).unlink(missing_ok=True)  # of an older file
    except OSError as failed:
        raise ResourceFailure(f"{target} could not be written: {failed}") from failed


def is_of_disk(error: Exception) -> bool:
    """Whether the disk failed; libraries also raise ``OSError`` for what they miss, or cannot download."""
    return isinstance(error, OSError) and error.errno in DISK


def first_line(error: Exception) -> str:
    """An error of any library in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]:.300}" if lines else type(error).__name__


def is_external(source: Path) -> bool:
    """Whether the weights lie in files of their own, as they must above two gigabytes."""
    graph = onnx.load(source, load_external_data=False).graph
    return any(tensor.data_location == TensorProto.EXTERNAL for tensor in graph.initializer)


def write_model(model: ModelProto, path: Path, *, external: bool) -> None:
    """Writes the model, with its weights in ``<name>.data`` beside it if they are to be ``external``."""
    onnx.save_model(model, path, save_as_external_data=external, location=data_of(path).name)


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """A session on the CPU that says nothing but errors, and does not spin while another one works.

    Raises:
        VerificationFailed: ONNX Runtime cannot load the file.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as broken:  # ONNX Runtime raises its own unrelated types
        raise VerificationFailed(f"{path} is not a graph ONNX Runtime can run: {broken}") from broken


def open_checked(path: Path) -> onnxruntime.InferenceSession:
    """A session of a file that is also an ONNX graph by the standard.

    Raises:
        VerificationFailed: it is none, or ONNX Runtime cannot load it.
    """
    try:
        onnx.checker.check_model(str(path))
    except Exception as broken:  # onnx raises its own unrelated types
        raise VerificationFailed(f"{path} is not a graph ONNX Runtime can run: {broken}") from broken
    return open_session(path)


def taken(session: onnxruntime.InferenceSession, feed: Arrays) -> Arrays:
    """What of a feed the graph takes: exporters drop inputs that a model ignores."""
    names = [each.name for each in session.get_inputs()]
    return {name: feed[name] for name in names if name in feed}


def open_model(model: ModelProto, *, external: bool) -> onnxruntime.InferenceSession:
    """A session on the CPU of a model that is in memory; it passes through the disk, since protobuf stops at 2 GB."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_model(model, path, external=external)
        return open_session(path)
