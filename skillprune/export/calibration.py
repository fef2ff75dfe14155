"""The ranges that activations take, which fixed quantisation wants to know in advance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, save

from skillprune.errors import DataError
from skillprune.export.files import SPLIT_ABOVE, weights_of
from skillprune.export.graphs import load_graph, products
from skillprune.export.signature import Arrays
from skillprune.progress import Progress, silent, track


@dataclass(frozen=True)
class Ranges:
    """Ranges of activations.

    Attributes:
        bounds: smallest and largest value of every tensor that goes into a product, by its name in the graph.
    """

    bounds: Mapping[str, tuple[float, float]]


def calibrate(source: Path, feeds: Sequence[Arrays], *, progress: Progress = silent) -> Ranges:
    """Runs the file and looks at what goes into its products by constant weights.

    A tensor's bounds are the means over batches of the smallest and the largest value, so that one odd batch does not
    cost all others precision. Padding counts: what stands there is computed too, and lies within the range of real
    tokens. Memory does not grow with the number of batches.

    Args:
        source: an fp32 file.
        feeds: batches of inputs by name; those the file does not take are left out.
        progress: told about every batch.

    Raises:
        DataError: there is no batch, or an activation is not finite.
        CheckpointError: the file cannot be read.
    """
    if not feeds:
        raise DataError("there are no examples to calibrate int8 on")
    graph = load_graph(source)
    constants = set(products(graph))
    watched = list(dict.fromkeys(node.input[0] for node in graph.graph.node if node.name in constants))
    _watch(graph, watched)
    with TemporaryDirectory() as folder:
        path = Path(folder, "watched.onnx")
        large = graph.ByteSize() > SPLIT_ABOVE
        save(graph, path, save_as_external_data=large, location=weights_of(path).name)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = [_bounds(session, each) for each in track(feeds, "calibrating int8", progress)]
    means = np.mean(found, axis=0)
    if not np.isfinite(means).all():
        raise DataError("activations are not finite on the calibration examples; int8 cannot hold them")
    return Ranges({name: (float(low), float(high)) for name, (low, high) in zip(watched, means, strict=True)})


def _watch(graph: ModelProto, tensors: Iterable[str]) -> None:
    """Makes the smallest and the largest value of each tensor an output, in the place of the graph's own ones."""
    del graph.graph.output[:]
    for tensor in tensors:
        for kind in ("ReduceMin", "ReduceMax"):
            name = f"{tensor}.{kind}"
            graph.graph.node.append(helper.make_node(kind, [tensor], [name], name=name, keepdims=0))
            graph.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))


def _bounds(session: onnxruntime.InferenceSession, feeds: Arrays) -> NDArray[np.float32]:
    """Smallest and largest values, ``(tensors, 2)``."""
    taken = {given.name: feeds[given.name] for given in session.get_inputs() if given.name in feeds}
    found: list[Any] = session.run(None, taken)
    return np.array(found, np.float32).reshape(-1, 2)
