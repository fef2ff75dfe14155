"""int8 files made of fp32 ones: the matrix products by constant weights, weights per channel, the rest as it was."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import add_pre_process_metadata, save_and_reload_model_with_shape_infer

from skillprune.errors import UnsupportedExport
from skillprune.export.calibration import Ranges
from skillprune.export.files import replacing, save, size_of
from skillprune.export.graphs import is_quantised, load_graph, products

_PRODUCT = "MatMul"


@dataclass(frozen=True)
class Quantised:
    """A file in another number format.

    Attributes:
        path: the file.
        bytes: its size, weights beside it included.
        changed: names of the matrix products that are computed in the smaller format.
        kept: names of those that were left in float32.
    """

    path: Path
    bytes: int
    changed: tuple[str, ...]
    kept: tuple[str, ...]


Quantise = Callable[[Path, Path, Collection[str]], Quantised]
"""Makes a file (second) of an fp32 file (first), with some products left in fp32."""


def quantise_dynamic(source: Path, target: Path, keep: Collection[str] = (), *, seven_bits: bool = False) -> Quantised:
    """int8 weights, symmetric and per output channel; activations become uint8 by their range in every single run.

    Args:
        source: an fp32 file.
        target: the file to write; an older one stays until this one is whole.
        keep: names of products to leave in fp32.
        seven_bits: whether weights take seven bits, for processors on which `saturates`.

    Raises:
        UnsupportedExport: the file has no products by constant matrices, or is quantised already.
        ResourceFailure: the disk failed.
    """
    graph, changed, kept = _chosen(source, keep)
    with replacing(target) as fresh:
        if changed:
            quantize_dynamic(
                graph,
                fresh,
                op_types_to_quantize=[_PRODUCT],
                per_channel=True,
                reduce_range=seven_bits,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=list(changed),
            )
            graph = onnx.load(fresh)
        save(graph, fresh)
    return Quantised(target, size_of(target), changed, kept)


def quantise_static(
    source: Path, target: Path, keep: Collection[str] = (), *, ranges: Ranges, seven_bits: bool = False
) -> Quantised:
    """As `quantise_dynamic`, with the ranges of activations fixed in advance, which saves looking for them in each run.

    Products give float32, so that only what goes into them is rounded.

    Args:
        source: an fp32 file.
        target: the file to write; an older one stays until this one is whole.
        keep: names of products to leave in fp32.
        ranges: of this file's activations, from `calibrate`.
        seven_bits: whether weights take seven bits, for processors on which `saturates`.

    Raises:
        UnsupportedExport: the file has no products by constant matrices, or is quantised already.
        ResourceFailure: the disk failed.
    """
    graph, changed, kept = _chosen(source, keep)
    if changed:
        apart = _set_apart(graph, changed)
        quantizer = QDQQuantizer(
            save_and_reload_model_with_shape_infer(graph),
            per_channel=True,
            reduce_range=seven_bits,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=_as_tensors_data(ranges, apart),
            nodes_to_quantize=list(changed),
            nodes_to_exclude=[],
            op_types_to_quantize=[_PRODUCT],
            extra_options={"OpTypesToExcludeOutputQuantization": [_PRODUCT]},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        graph = quantizer.model.model
    with replacing(target) as fresh:
        save(graph, fresh)
    return Quantised(target, size_of(target), changed, kept)


def saturates(cpu_flags: str) -> bool:
    """Whether int8 kernels of ONNX Runtime may overflow on a processor with such flags.

    Without VNNI, x86 sums two products of uint8 and int8 in 16 bits, which eight-bit weights can exceed
    (VPMADDUBSW saturates); seven-bit weights cannot.
    """
    flags = set(cpu_flags.split())
    return bool(flags) and not flags & {"avx512_vnni", "avx_vnni", "amx_int8"}


def _set_apart(graph: onnx.ModelProto, changed: Collection[str]) -> dict[str, str]:
    """Gives the products to be quantised their own name for what goes into them; old names to new ones.

    All that reads a tensor which the library quantises reads the rounded one; the residual stream should not be rounded
    because a product reads it too. ONNX Runtime removes the nodes that copy.
    """
    apart: dict[str, str] = {}
    nodes = []
    for node in graph.graph.node:
        if node.name in changed:
            read = node.input[0]
            if read not in apart:
                apart[read] = f"{read}.int8"
                nodes.append(onnx.helper.make_node("Identity", [read], [apart[read]], name=apart[read]))
            node.input[0] = apart[read]
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.graph.node[:]
    graph.graph.node.extend(copies)
    return apart


def _as_tensors_data(ranges: Ranges, apart: Mapping[str, str]) -> TensorsData:
    """The ranges of the tensors that were set apart, as the library wants them."""
    bounds = {new: tuple(np.array(bound, np.float32) for bound in ranges.bounds[old]) for old, new in apart.items()}
    return TensorsData(CalibrationMethod.MinMax, bounds)


def _chosen(source: Path, keep: Collection[str]) -> tuple[onnx.ModelProto, tuple[str, ...], tuple[str, ...]]:
    """The graph, and its products to quantise and to leave."""
    graph = load_graph(source)
    if is_quantised(graph):
        raise UnsupportedExport(f"{source} is quantised already; quantise the fp32 file it was made from")
    names = products(graph)
    if not names:
        raise UnsupportedExport(f"{source} has no matrix product by constant weights to quantise")
    unknown = set(keep) - set(names)
    if unknown:
        raise ValueError(f"{source} has no products called {sorted(unknown)}")
    add_pre_process_metadata(graph)  # the library asks for its own optimiser's graphs; exporters' do as well
    changed = tuple(name for name in names if name not in keep)
    return graph, changed, tuple(name for name in names if name in keep)
