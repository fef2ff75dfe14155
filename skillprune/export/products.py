"""The products of a graph with constant weights, each with a name; what becomes of them is left to others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from skillprune.errors import CheckpointError

INTEGER_OPS = {
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "QGemm",
    "QLinearMatMul",
    "QuantizeLinear",
}
"""Operators that tell a graph is quantised already."""


@dataclass(frozen=True)
class Product:
    """Activations times constant weights.

    Attributes:
        node: the ``MatMul``; its second input names the weights ``(inputs, outputs)``.
        bias: the ``Add`` of a constant vector ``(outputs,)`` that alone reads the product, if there is one.
    """

    node: NodeProto
    bias: NodeProto | None

    @property
    def source(self) -> str:
        """The tensor that is multiplied."""
        return str(self.node.input[0])

    @property
    def weights(self) -> str:
        """The initialiser it is multiplied by."""
        return str(self.node.input[1])

    @property
    def result(self) -> str:
        """The tensor that holds the product, bias included."""
        return str(self.nodes[-1].output[0])

    @property
    def nodes(self) -> tuple[NodeProto, ...]:
        """The multiplication, and the addition if there is one."""
        return (self.node,) if self.bias is None else (self.node, self.bias)


def read_float_graph(source: Path) -> ModelProto:
    """Reads a float32 graph in the form that is quantised: every ``Gemm`` with weights is a ``MatMul`` and an ``Add``.

    Such a ``MatMul`` has the name of the ``Gemm``; nodes without a name, or with another's, are called by their first
    output. ONNX Runtime computes the same numbers as before.

    Raises:
        CheckpointError: the file is missing, is no ONNX graph, is quantised, or multiplies by no float32 weights.
    """
    model = read_model(source)
    graph = model.graph
    if any(node.op_type in INTEGER_OPS for node in graph.node):
        raise CheckpointError(f"{source} is quantised already: give the float32 file that it was made from")
    # Exporters leave shapes that later steps no longer agree with; whoever needs shapes infers them.
    del graph.value_info[:]
    _name(graph)
    _split_gemms(graph)
    drop_unused(graph)
    if not products_of(graph):
        raise CheckpointError(f"{source} multiplies by no float32 weights, so there is nothing to quantise")
    return model


def read_model(path: Path) -> ModelProto:
    """Reads a graph with its weights.

    Raises:
        CheckpointError: the file is missing or is no ONNX graph.
    """
    try:
        return onnx.load(path)
    except Exception as broken:  # protobuf, onnx and the file system raise types of their own
        raise CheckpointError(f"{path} cannot be read as an ONNX file: {broken}") from broken


def products_of(graph: GraphProto) -> dict[str, Product]:
    """The products with constant float32 matrices by the name of their node, in the order they are computed in."""
    shapes = {each.name: tuple(each.dims) for each in graph.initializer if each.data_type == TensorProto.FLOAT}
    readers = Counter(_read(graph))
    additions = {}
    for node in graph.node:
        if node.op_type == "Add":
            for product, bias in (node.input, node.input[::-1]):
                if readers[product] == 1:
                    additions[product] = node, shapes.get(bias)
    found = {}
    for node in graph.node:
        if node.op_type == "MatMul" and len(shape := shapes.get(node.input[1], ())) == 2:
            addition, added = additions.get(node.output[0], (None, None))
            found[node.name] = Product(node, addition if added == shape[1:] else None)
    return found


def weights_of(graph: GraphProto, names: set[str]) -> dict[str, NDArray[np.float32]]:
    """The named initialisers as arrays."""
    return {each.name: numpy_helper.to_array(each) for each in graph.initializer if each.name in names}


def drop_unused(graph: GraphProto) -> None:
    """Removes the nodes and initialisers that no output depends on."""
    while True:
        needed = set(_read(graph))
        useful = [node for node in graph.node if needed.intersection(node.output)]
        if len(useful) == len(graph.node):
            break
        replace_nodes(graph, useful)
    kept = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def replace_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    """Makes ``nodes`` all nodes of the graph."""
    del graph.node[:]
    graph.node.extend(nodes)


def _read(graph: GraphProto) -> Iterator[str]:
    """Every tensor that is read, once per reader, also by subgraphs and as an output."""
    yield from (output.name for output in graph.output)
    for node in graph.node:
        yield from filter(None, node.input)  # an input that is left out has no name
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _read(attribute.g)
            for inner in attribute.graphs:
                yield from _read(inner)


def _name(graph: GraphProto) -> None:
    taken: set[str] = set()
    for node in graph.node:
        if not node.name or node.name in taken:
            node.name = node.output[0]
        taken.add(node.name)


def _split_gemms(graph: GraphProto) -> None:
    """ONNX Runtime's own rewriting would transpose weights in place, under the eyes of whoever else reads them."""
    matrices = {each.name: each for each in graph.initializer if each.data_type == TensorProto.FLOAT}
    nodes: list[NodeProto] = []
    for node in graph.node:
        values = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        plain = values.get("alpha", 1.0) == values.get("beta", 1.0) == 1.0 and not values.get("transA", 0)
        if node.op_type == "Gemm" and plain and node.input[1] in matrices:
            nodes += _split(graph, node, matrices[node.input[1]], transposed=bool(values.get("transB", 0)))
        else:
            nodes.append(node)
    replace_nodes(graph, nodes)


def _split(graph: GraphProto, gemm: NodeProto, weights: TensorProto, *, transposed: bool) -> list[NodeProto]:
    name = weights.name
    if transposed:
        name = f"{gemm.name}.weights"
        turned = np.ascontiguousarray(numpy_helper.to_array(weights).T)
        graph.initializer.append(numpy_helper.from_array(turned, name))
    if len(gemm.input) < 3 or not gemm.input[2]:
        return [helper.make_node("MatMul", [gemm.input[0], name], gemm.output, gemm.name)]
    product = f"{gemm.name}.product"
    return [
        helper.make_node("MatMul", [gemm.input[0], name], [product], gemm.name),
        helper.make_node("Add", [product, gemm.input[2]], gemm.output, f"{gemm.name}.bias"),
    ]
