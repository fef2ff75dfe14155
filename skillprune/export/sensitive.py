"""Which products an int8 file had better keep in float32, and the fewest of them that satisfy a condition."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto

from skillprune.errors import DataError, PlanMismatch
from skillprune.export.products import (
    Product,
    drop_unused,
    products_of,
    read_float_graph,
    read_model,
    replace_nodes,
    weights_of,
)
from skillprune.export.quantisation import LARGEST, Quantised, quantise_weights
from skillprune.export.signature import Arrays
from skillprune.export.staging import is_external, open_model, open_session, staged, taken
from skillprune.progress import Progress, silent, track

Outputs = Sequence[NDArray[Any]]


class Quantise(Protocol):
    """Writes a smaller file: `quantise_dynamic`, or `quantise_static` with its ranges filled in."""

    def __call__(self, source: Path, target: Path, *, keep: Collection[str]) -> Quantised: ...


def output_error(reference: Path, candidate: Path, feeds: Iterable[Arrays]) -> float:
    """The squared difference of all outputs over ``feeds``, relative to the squared outputs of ``reference``.

    Infinite where the candidate's outputs are not finite. Outputs at padding count: for models that answer at every
    token give texts without it, as float16 says other things than float32 where there is nothing to look at.

    Raises:
        DataError: there are no feeds.
        VerificationFailed: ONNX Runtime cannot load a file.
    """
    given = _some(feeds)
    return _error(_outputs(open_session(reference), given), _outputs(open_session(candidate), given))


def sensitivity(
    source: Path, int8_file: Path, feeds: Iterable[Arrays], *, tries: int = 48, progress: Progress = silent
) -> tuple[str, ...]:
    """The quantised products, most hurtful first: those whose return to float32 brings the outputs closest to it.

    One after the other is put back into the int8 file, alone. Beyond ``tries`` only those are tried whose weights are
    rounded worst, and the others follow in the order of that error.

    Args:
        source: the float32 file.
        int8_file: what `quantise_dynamic` or `quantise_static` made of it.
        feeds: what to run; their outputs are held in memory, and they are run once per product.
        tries: products to try at most.
        progress: told of every product tried.

    Returns:
        Names of nodes of ``source``.

    Raises:
        DataError: there are no feeds.
        PlanMismatch: ``int8_file`` was not made of ``source``, or nothing of it is quantised.
        CheckpointError: see `read_float_graph`; or ``int8_file`` cannot be read.
    """
    given, floating, integer = _some(feeds), read_float_graph(source), read_model(int8_file)
    quantised = _quantised(floating.graph, integer.graph, int8_file)
    expected, external = _outputs(open_session(source), given), is_external(source)
    order = sorted(quantised, key=_weight_errors(floating.graph, quantised).__getitem__, reverse=True)
    errors = {}
    for name in track(order[:tries], "products put back to float32", progress):
        session = open_model(_graft(integer, floating.graph, quantised[name]), external=external)
        errors[name] = _error(expected, _outputs(session, given))
    return (*sorted(errors, key=errors.__getitem__), *order[tries:])


def keep_sensitive(
    source: Path, target: Path, quantise: Quantise, ranking: Sequence[str], accept: Callable[[Path], bool]
) -> Quantised | None:
    """Writes ``target`` with the fewest leading entries of ``ranking`` in float32 that make ``accept`` agree.

    Taken for granted is that a file with more in float32 is accepted wherever one with less is; so after the file with
    none the middle of what is open is tried, six tries for 62 products.

    Args:
        source: the float32 file.
        target: the file to write; untouched unless something is accepted.
        quantise: writes a file given what to keep.
        ranking: what `sensitivity` gives.
        accept: whether a file is good enough; it is called with files that do not stay.

    Returns:
        What was written; None when even half of the ranking in float32 does not satisfy.
    """
    refused, accepted, best = -1, len(ranking) // 2 + 1, None
    tried = 0
    while accepted - refused > 1:
        with staged(target) as fresh:
            result = quantise(source, fresh, keep=ranking[:tried])
            good = accept(fresh)
            if not good:
                _empty(fresh.parent)
        if good:
            accepted, best = tried, Quantised(target, result.quantised, result.kept)
        else:
            refused = tried
        tried = (refused + accepted) // 2
    return best


def _empty(folder: Path) -> None:
    for written in folder.iterdir():
        written.unlink()


def _some(feeds: Iterable[Arrays]) -> tuple[Arrays, ...]:
    given = tuple(feeds)
    if not given:
        raise DataError("there is nothing to run: give at least one example")
    return given


def _outputs(session: onnxruntime.InferenceSession, feeds: Iterable[Arrays]) -> Outputs:
    return [array for feed in feeds for array in session.run(None, taken(session, feed))]


def _error(expected: Outputs, found: Outputs) -> float:
    pairs = [(one.astype(np.float64), other.astype(np.float64)) for one, other in zip(expected, found, strict=True)]
    different = sum(float(np.square(other - one).sum()) for one, other in pairs)
    size = sum(float(np.square(one).sum()) for one, _ in pairs)
    if not np.isfinite(different) or (different and not size):
        return float("inf")
    return different / size if different else 0.0


def _quantised(floating: GraphProto, integer: GraphProto, int8_file: Path) -> dict[str, Product]:
    """The products that are no longer float32 products of the same weights."""
    products = products_of(floating)
    produced = {output for node in integer.node for output in node.output}
    left = {(node.name, *node.input) for node in integer.node}
    found = {name: product for name, product in products.items() if (name, product.source, product.weights) not in left}
    if not found or any(product.result not in produced for product in found.values()):
        raise PlanMismatch(f"{int8_file} is not a quantised form of the float32 file: make it of that file first")
    return found


def _weight_errors(graph: GraphProto, products: Mapping[str, Product]) -> dict[str, float]:
    """The mean squared rounding error of every product's weights, relative to the weight in the middle.

    Relative to the mean, one huge weight would hide that it leaves no precision to the others.
    """
    weights = weights_of(graph, {product.weights for product in products.values()})
    errors = {}
    for name, array in weights.items():
        integers, scales = quantise_weights(array, LARGEST)
        size = max(float(np.median(np.abs(array))), float(np.finfo(np.float32).tiny))
        errors[name] = float(np.square((integers * scales - array) / size, dtype=np.float64).mean())
    return {name: errors[product.weights] for name, product in products.items()}


def _graft(integer: ModelProto, floating: GraphProto, product: Product) -> ModelProto:
    """The int8 model with one product computed in float32 again."""
    model = ModelProto()
    model.CopyFrom(integer)
    graph = model.graph
    own = {output for node in product.nodes for output in node.output}
    replaced = [index for index, node in enumerate(graph.node) if own.intersection(node.output)]
    nodes = [node for index, node in enumerate(graph.node) if index not in replaced]
    replace_nodes(graph, [*nodes[: replaced[0]], *product.nodes, *nodes[replaced[0] :]])
    present = {tensor.name for tensor in graph.initializer}
    wanted = {name for node in product.nodes for name in node.input} - present
    graph.initializer.extend(tensor for tensor in floating.initializer if tensor.name in wanted)
    drop_unused(graph)
    return model
