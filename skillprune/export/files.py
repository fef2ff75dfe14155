"""ONNX files on disk: replaced whole or not at all, and split in two where protobuf's limit asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from skillprune.errors import ResourceFailure

SPLIT_ABOVE = 2_000_000_000
"""Bytes of a graph above which its weights go to a file of their own: protobuf cannot write more than 2 GiB."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives an empty directory's ``path.name`` to write, and puts what was written in the place of ``path``.

    Raises:
        ResourceFailure: the disk failed; what was at ``path`` is intact.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            fresh = Path(folder, path.name)
            yield fresh
            _move(fresh, path)
    except OSError as failed:
        raise ResourceFailure(f"{path} could not be written: {failed.strerror or failed}") from failed


def weights_of(path: Path) -> Path:
    """Where the weights of a split file lie."""
    return path.with_name(f"{path.name}.data")


def size_of(path: Path) -> int:
    """Bytes of a file and of its weights."""
    return sum(each.stat().st_size for each in (path, weights_of(path)) if each.exists())


def settle(path: Path, *, split_above: int = SPLIT_ABOVE) -> None:
    """Gathers what an exporter wrote to the directory of ``path`` into one file, or two where it is large."""
    others = [each for each in path.parent.iterdir() if each != path]
    size = path.stat().st_size + sum(each.stat().st_size for each in others)
    if not others and size <= split_above:
        return
    model = onnx.load(path)
    for each in others:
        each.unlink()
    save(model, path, split_above=split_above)


def save(model: onnx.ModelProto, path: Path, *, split_above: int = SPLIT_ABOVE) -> None:
    """Writes a graph, with its weights beside it where it is large."""
    if model.ByteSize() <= split_above:
        onnx.save(model, path)
        return
    # Small constants stay inside: shape inference reads them.
    onnx.save(model, path, save_as_external_data=True, location=weights_of(path).name, size_threshold=1024)


def _move(fresh: Path, path: Path) -> None:
    if weights_of(fresh).exists():
        os.replace(weights_of(fresh), weights_of(path))
    else:
        weights_of(path).unlink(missing_ok=True)
    os.replace(fresh, path)
