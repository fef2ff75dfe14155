"""fp16 files made of fp32 ones, for GPUs: inputs and outputs stay as they are."""

from __future__ import annotations

from pathlib import Path

from onnxruntime.transformers.float16 import convert_float_to_float16

from skillprune.errors import UnsupportedExport
from skillprune.export.files import SPLIT_ABOVE, replacing, save, size_of
from skillprune.export.graphs import is_quantised, load_graph, products
from skillprune.export.quantisation import Quantised


def to_float16(source: Path, target: Path) -> Quantised:
    """Weights and arithmetic in float16, where the operators have it.

    Args:
        source: an fp32 file.
        target: the file to write; an older one stays until this one is whole.

    Raises:
        UnsupportedExport: the file is quantised.
        ResourceFailure: the disk failed.
    """
    graph = load_graph(source)
    if is_quantised(graph):
        raise UnsupportedExport(f"{source} is quantised; make fp16 of the fp32 file it was made from")
    # Shape inference in memory has protobuf's limit.
    large = graph.ByteSize() > SPLIT_ABOVE
    small = convert_float_to_float16(graph, keep_io_types=True, disable_shape_infer=large)
    with replacing(target) as fresh:
        save(small, fresh)
    return Quantised(target, size_of(target), products(small), ())
