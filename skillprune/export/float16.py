"""From a float32 ONNX file to one that stores and computes float16, as the CUDA provider likes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from onnx import GraphProto, NodeProto, TensorProto, helper
from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer

from skillprune.export.products import drop_unused, products_of, read_float_graph
from skillprune.export.quantisation import Quantised
from skillprune.export.staging import is_external, staged, write_model

CACHE = ("past_key_values.", "present.")
"""How the names of keys and values begin that go in and come out."""

LARGEST = 1e4
"""Constants are cut to this: masks are added to scores, even twice, and beyond float16's limit the sum is infinite."""


def to_float16(source: Path, target: Path) -> Quantised:
    """Writes ``target`` in float16; inputs and outputs keep their types, so it is fed and read like ``source``.

    Only the cache of a model that writes changes its type with it: nobody but the graph reads that.

    What transformers computes in float32 in a float16 model stays so: angles of rotary positions, with all they are
    computed from, and mean squares of norms that are not one operator. ONNX Runtime's CPU provider runs the file too.

    Args:
        source: a float32 ONNX file.
        target: the file to write.

    Returns:
        The file; every product with weights is ``quantised`` but those that angles are computed from.

    Raises:
        CheckpointError: see `read_float_graph`.
        ResourceFailure: the file could not be written.
    """
    # Importing it puts the folder of ONNX Runtime's tools on the import path: not before someone wants them.
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = save_and_reload_model_with_shape_infer(read_float_graph(source))
    products = products_of(model.graph)
    precise = {node.name for node in (*_angles(model.graph), *_mean_squares(model.graph))}
    ends = [each.name for each in (*model.graph.input, *model.graph.output) if not each.name.startswith(CACHE)]
    model = convert_float_to_float16(
        model, max_finite_val=LARGEST, keep_io_types=ends, disable_shape_infer=True, node_block_list=sorted(precise)
    )
    _join_casts(model.graph)
    drop_unused(model.graph)
    OnnxModel(model).topological_sort()
    with staged(target) as fresh:
        write_model(model, fresh, external=is_external(source))
    return Quantised(
        target,
        tuple(name for name in products if name not in precise),
        tuple(name for name in products if name in precise),
    )


def _angles(graph: GraphProto) -> Iterator[NodeProto]:
    """Sines and cosines, and everything that they are computed from, up to sizes of tensors."""
    producers = {output: node for node in graph.node for output in node.output}
    waiting = [node for node in graph.node if node.op_type in {"Cos", "Sin"}]
    seen: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node.name not in seen:
            seen.add(node.name)
            yield node
            # A size is the same in every type: what it is taken of need not be float32.
            if node.op_type not in {"Shape", "Size"}:
                waiting += [producers[name] for name in node.input if name in producers]


def _mean_squares(graph: GraphProto) -> Iterator[NodeProto]:
    """Squares whose mean is taken, the mean, the addition of a small number to it and the root."""
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    waiting = [
        node
        for node in graph.node
        if node.op_type == "Pow" and any(reader.op_type == "ReduceMean" for reader in readers.get(node.output[0], ()))
    ]
    while waiting:
        node = waiting.pop()
        yield node
        following = {"Pow": "ReduceMean", "ReduceMean": "Add", "Add": "Sqrt"}.get(node.op_type)
        waiting += [reader for reader in readers.get(node.output[0], ()) if reader.op_type == following]


def _join_casts(graph: GraphProto) -> None:
    """Hands float32 directly to a float32 node after another; the converter has it pass through float16 in between."""
    rounded = {node.output[0]: node.input[0] for node in graph.node if _casts_to(node, TensorProto.FLOAT16)}
    floating = set(_float32(graph))
    whole = {
        node.output[0]: rounded[node.input[0]]
        for node in graph.node
        if _casts_to(node, TensorProto.FLOAT) and rounded.get(node.input[0]) in floating
    }
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = whole.get(name, name)


def _casts_to(node: NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and helper.get_node_attr_value(node, "to") == kind


def _float32(graph: GraphProto) -> Iterator[str]:
    """The tensors that are known to be float32."""
    for value in (*graph.input, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            yield value.name
