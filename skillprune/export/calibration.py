"""Measures between which values the inputs of a graph's products lie; what is made of it is left to quantisation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from skillprune.errors import DataError
from skillprune.export.products import products_of, read_float_graph
from skillprune.export.signature import Arrays
from skillprune.export.staging import is_external, open_model, taken
from skillprune.progress import Progress, silent

ALONG_THE_TEXT = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
"""Inputs ``(batch, sequence)`` that are shortened together."""


@dataclass(frozen=True)
class Ranges:
    """The lowest and highest value of every tensor that is multiplied by weights, by its name in the graph."""

    bounds: Mapping[str, tuple[float, float]]


def calibrate(source: Path, feeds: Iterable[Arrays], *, progress: Progress = silent) -> Ranges:
    """The exact ranges over all of ``feeds``; memory is that of one run, however many there are.

    Padding at the end of texts is not run, if the graph leaves the batch and the sequence of its mask open: rows are
    run with rows of their length. Padding in front is run, since positions count from it.

    Args:
        source: a float32 ONNX file.
        feeds: what to run, once.
        progress: told of every feed.

    Raises:
        DataError: there are no feeds, or a value is not finite.
        CheckpointError: see `read_float_graph`.
    """
    model = read_float_graph(source)
    names = sorted({product.source for product in products_of(model.graph).values()})
    shown = {output.name for output in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in shown)
    session = open_model(model, external=is_external(source))
    inputs = {each.name: each.shape for each in session.get_inputs()}
    # An input that is multiplied itself is no output of the session; it is fed, so it is at hand.
    asked = [name for name in names if name not in inputs]
    bounds: dict[str, tuple[float, float]] = {}
    total = len(feeds) if isinstance(feeds, Sized) else 0
    for done, feed in enumerate(feeds, start=1):
        for part in _without_padding(feed, inputs.get("attention_mask", [])):
            _widen(bounds, {**_run(session, asked, part), **{name: part[name] for name in names if name in part}})
        progress("calibrating", done, max(done, total))
    if not bounds:
        raise DataError(f"there is nothing to calibrate {source} with: give at least one example")
    return Ranges(bounds)


def _run(session: onnxruntime.InferenceSession, names: list[str], feed: Arrays) -> dict[str, NDArray[np.float32]]:
    return dict(zip(names, session.run(names, taken(session, feed)), strict=True)) if names else {}


def _widen(bounds: dict[str, tuple[float, float]], values: Mapping[str, NDArray[np.float32]]) -> None:
    for name, array in values.items():
        if array.size:
            low, high = float(array.min()), float(array.max())
            if not np.isfinite([low, high]).all():
                raise DataError(f"tensor {name} holds values that are not finite: check the examples and the weights")
            before = bounds.get(name, (low, high))
            bounds[name] = min(before[0], low), max(before[1], high)


def _without_padding(feed: Arrays, shape: list[str | int | None]) -> Iterator[Arrays]:
    """The rows of a feed in groups of one length each, cut to it; the feed itself where that cannot be done."""
    mask = feed.get("attention_mask")
    if mask is None or mask.ndim != 2 or any(isinstance(size, int) for size in shape):
        yield feed
        return
    lengths = np.where(mask != 0, np.arange(1, mask.shape[1] + 1), 0).max(axis=1, initial=0)
    for length in sorted({*lengths.tolist()} - {0}):
        rows = {name: array[lengths == length] for name, array in feed.items()}
        yield {name: array[:, :length] if name in ALONG_THE_TEXT else array for name, array in rows.items()}
