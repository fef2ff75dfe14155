"""What is to be seen in an ONNX graph: its matrix products, and whether it is quantised."""

from __future__ import annotations

from pathlib import Path

import onnx

from skillprune.errors import CheckpointError

_QUANTISED = {"QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul", "DequantizeLinear"}


def load_graph(path: Path) -> onnx.ModelProto:
    """An ONNX file with its weights.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """
    try:
        return onnx.load(path)
    except Exception as failed:  # protobuf's errors are its own
        raise CheckpointError(f"{path}: not a readable ONNX file: {failed}") from failed


def products(graph: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the products by a constant matrix, in the order they are computed."""
    matrices = {tensor.name for tensor in graph.graph.initializer if len(tensor.dims) == 2}
    return tuple(node.name for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in matrices)


def is_quantised(graph: onnx.ModelProto) -> bool:
    """Whether something in it is computed in, or comes from, small integers."""
    return any(node.op_type in _QUANTISED for node in graph.graph.node)
