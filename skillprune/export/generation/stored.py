"""Stores a traced graph: a matrix used both ways round once, and weights beside it where protobuf has no room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from skillprune.export.files import SPLIT_ABOVE, save


def store(source: Path, target: Path, *, split_above: int = SPLIT_ABOVE) -> None:
    """Writes the graph of ``source`` to ``target``, and ``target`` + ``.data`` beside it if it is too large.

    Args:
        source: a traced graph.
        target: the file to write, in another directory.
        split_above: bytes of weights above which they are stored beside the graph.
    """
    model = onnx.load(source)
    share_transposed_(model)
    save(model, target, split_above=split_above)


def share_transposed_(model: ModelProto) -> None:
    """Has every matrix that is the transpose of another computed from it, which ONNX Runtime does once, on loading.

    So a head that is tied to the embedding is stored once, as in the checkpoint.
    """
    matrices = {tensor.name: tensor for tensor in model.graph.initializer if len(tensor.dims) == 2}
    looked_up = {name for node in model.graph.node if node.op_type == "Gather" for name in node.input[:1]}
    for name in sorted(looked_up & set(matrices)):
        table = numpy_helper.to_array(matrices[name])
        for other in [each for each in matrices.values() if each.name not in looked_up and _turned(each, table)]:
            model.graph.initializer.remove(other)
            del matrices[other.name]
            turn = helper.make_node("Transpose", [name], [other.name], name=f"{other.name}_turned", perm=[1, 0])
            model.graph.node.insert(0, turn)


def _turned(tensor: TensorProto, table: NDArray[np.generic]) -> bool:
    """Whether the tensor is the table the other way round."""
    if tuple(tensor.dims) != table.shape[::-1] or tensor.data_type != helper.np_dtype_to_tensor_dtype(table.dtype):
        return False
    return np.array_equal(numpy_helper.to_array(tensor), table.T)
