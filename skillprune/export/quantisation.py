"""From a float32 ONNX file to one that multiplies eight-bit integers; how good and how fast it is, others measure."""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization import quantize_dynamic as ort_quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from skillprune.errors import PlanMismatch
from skillprune.export.calibration import Ranges
from skillprune.export.products import Product, drop_unused, products_of, read_float_graph, replace_nodes, weights_of
from skillprune.export.staging import is_external, staged, write_model

X86 = {"x86_64", "amd64"}
LARGEST, LARGEST_SEVEN_BITS = 127, 64
"""Largest integer of a weight: 255 x 64 twice still fits the 16 bits that some kernels sum in."""


@dataclass(frozen=True)
class Quantised:
    """A file of a smaller numeric type.

    Attributes:
        path: the ONNX file.
        quantised: the products, by the names of their nodes in the source, that are computed in the smaller type.
        kept: those that are computed in float32 as before.
    """

    path: Path
    quantised: tuple[str, ...]
    kept: tuple[str, ...]


def saturates(cpu_flags: str | None) -> bool:
    """Whether this processor needs seven-bit weights, or sums of products overflow.

    Without the instructions called VNNI, x86 sums pairs of u8 x s8 products in 16 bits, at 32767 and no further.

    Args:
        cpu_flags: the flags of interest, separated by spaces, as `skillprune.benchmark.environment` gives them; None
            where the system does not tell, and x86 is taken to need them.
    """
    if cpu_flags is None:
        return platform.machine().lower() in X86
    flags = set(cpu_flags.split())
    return bool(flags & {"avx2", "avx512f"}) and not flags & {"avx512_vnni", "avx_vnni", "amx_int8"}


def quantise_dynamic(source: Path, target: Path, *, keep: Collection[str] = (), seven_bits: bool = False) -> Quantised:
    """Writes ``target`` with integer products whose activations are measured in every run, so it needs no examples.

    Weights are symmetric int8 with one scale per output, activations uint8 with one scale per tensor. Products of two
    activations stay in float32, and so do embeddings. It holds standard ONNX operators.

    Args:
        source: a float32 ONNX file.
        target: the file to write.
        keep: names of nodes of ``source`` that stay in float32.
        seven_bits: weights within 64 instead of 127, for processors where `saturates` says so.

    Raises:
        CheckpointError: see `read_float_graph`.
        PlanMismatch: ``keep`` names what is no product with weights.
        ResourceFailure: the file could not be written.
    """
    model, external = read_float_graph(source), is_external(source)
    chosen, kept = _divide(products_of(model.graph), keep, source)
    others = [node.name for node in model.graph.node if node.name not in chosen]
    result = _measure_and_multiply(model, others, seven_bits=seven_bits, external=external)
    with staged(target) as fresh:
        write_model(result, fresh, external=external)
    return Quantised(target, tuple(chosen), kept)


def quantise_static(
    source: Path, target: Path, *, ranges: Ranges, keep: Collection[str] = (), seven_bits: bool = False
) -> Quantised:
    """Writes ``target`` with integer products whose activations are quantised by ``ranges``, measured beforehand.

    Weights and activations are of the types of `quantise_dynamic`. A product and its bias are one node of a kind that
    only ONNX Runtime has; it gives float32, so only what is multiplied is rounded. Both formats that ONNX Runtime's own
    tools write round residual sums or results too, are less exact for it, and leave additions that take time. A product
    whose input never had a value in calibration (an expert no token was sent to) stays in float32.

    Args:
        source: a float32 ONNX file.
        target: the file to write.
        ranges: what `calibrate` measured on ``source``.
        keep: names of nodes of ``source`` that stay in float32.
        seven_bits: weights within 64 instead of 127, for processors where `saturates` says so.

    Raises:
        CheckpointError: see `read_float_graph`.
        PlanMismatch: ``keep`` names what is no product with weights, or ``ranges`` are of another graph.
        ResourceFailure: the file could not be written.
    """
    model = read_float_graph(source)
    products = products_of(model.graph)
    if not any(product.source in ranges.bounds for product in products.values()):
        raise PlanMismatch(f"the ranges are not of {source}: calibrate this file")
    unseen = {name for name, product in products.items() if product.source not in ranges.bounds}
    chosen, kept = _divide(products, {*keep} | unseen, source)
    _multiply_integers(model.graph, chosen, ranges, LARGEST_SEVEN_BITS if seven_bits else LARGEST)
    if not any(each.domain == "com.microsoft" for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with staged(target) as fresh:
        write_model(model, fresh, external=is_external(source))
    return Quantised(target, tuple(chosen), kept)


def quantise_weights(weights: NDArray[np.float32], largest: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The nearest integers ``(inputs, outputs)`` within ``largest`` and the scale ``(outputs,)`` of every column."""
    scales = np.abs(weights).max(axis=0) / np.float32(largest)
    scales[scales == 0] = 1
    return np.rint(weights / scales).astype(np.int8), scales.astype(np.float32)


def _divide(
    products: Mapping[str, Product], keep: Collection[str], source: Path
) -> tuple[dict[str, Product], tuple[str, ...]]:
    unknown = sorted(set(keep) - set(products))
    if unknown:
        raise PlanMismatch(f"{source} has no products with weights called {', '.join(unknown)}, so they cannot be kept")
    chosen = {name: product for name, product in products.items() if name not in keep}
    return chosen, tuple(name for name in products if name in keep)


def _measure_and_multiply(model: ModelProto, others: list[str], *, seven_bits: bool, external: bool) -> ModelProto:
    # Says that the graph is ready as it is; otherwise the library advises to prepare it.
    add_pre_process_metadata(model)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ort_quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=seven_bits,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=others,
            use_external_data_format=external,
        )
        result = onnx.load(path)
    # Where shapes are noted, ONNX Runtime joins additions and norms, and then runs slower.
    del result.graph.value_info[:]
    del result.metadata_props[:]
    return result


def _multiply_integers(graph: GraphProto, chosen: Mapping[str, Product], ranges: Ranges, largest: int) -> None:
    """Puts integer products in the place of the chosen ones, and one rounding before all products of one tensor."""
    weights = weights_of(graph, {product.weights for product in chosen.values()})
    for name in weights:
        integers, scales = quantise_weights(weights[name], largest)
        _add_constants(graph, {f"{name}.integers": integers, f"{name}.scale": scales})
    for name in {product.source for product in chosen.values()}:
        scale, zero = _activation_grid(*ranges.bounds[name])
        _add_constants(graph, {f"{name}.scale": scale, f"{name}.zero": zero})
    last = {product.nodes[-1].name: product for product in chosen.values()}
    replaced = {node.name for product in chosen.values() for node in product.nodes}
    nodes: list[NodeProto] = []
    rounded: set[str] = set()
    for node in graph.node:
        if node.name in last:
            product = last[node.name]
            if product.source not in rounded:
                rounded.add(product.source)
                nodes.append(_rounding(product.source))
            nodes.append(_integer_product(product))
        elif node.name not in replaced:
            nodes.append(node)
    replace_nodes(graph, nodes)
    drop_unused(graph)


def _activation_grid(low: float, high: float) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Scale and zero point; zero is always a point of the grid."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255) or np.float32(1)
    return np.array(scale, np.float32), np.array(np.clip(np.rint(-low / scale), 0, 255), np.uint8)


def _add_constants(graph: GraphProto, constants: Mapping[str, NDArray[Any]]) -> None:
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())


def _rounding(tensor: str) -> NodeProto:
    constants = [f"{tensor}.scale", f"{tensor}.zero"]
    return helper.make_node("QuantizeLinear", [tensor, *constants], [f"{tensor}.rounded"], f"{tensor}.rounding")


def _integer_product(product: Product) -> NodeProto:
    x, weights = product.source, product.weights
    inputs = [f"{x}.rounded", f"{weights}.integers", f"{x}.scale", f"{weights}.scale", f"{x}.zero", ""]
    if product.bias is not None:
        inputs.append(next(each for each in product.bias.input if each != product.node.output[0]))
    return helper.make_node(
        "MatMulIntegerToFloat", inputs, [product.result], f"{product.node.name}_quant", domain="com.microsoft"
    )
