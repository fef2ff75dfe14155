"""Which products of an int8 file hurt, and how few of them must stay in fp32 for the file to be accurate enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from skillprune.export.graphs import load_graph, products
from skillprune.export.parity import Outputs, onnx_run
from skillprune.export.quantisation import Quantise, Quantised
from skillprune.export.signature import Arrays
from skillprune.progress import Progress, silent, track

TRIES = 48
"""Most files that are made to rank products; a model with more of them has neighbours ranked together."""


def sensitivity(
    source: Path, quantise: Quantise, feeds: Sequence[Arrays], *, tries: int = TRIES, progress: Progress = silent
) -> tuple[str, ...]:
    """Names of an fp32 file's products by constant weights, those first that hurt most when they alone are quantised.

    Hurt is the squared error of the outputs over their variance. Where there are more than ``tries`` products,
    neighbours share one file and a place.

    Args:
        source: the fp32 file.
        quantise: quantises it.
        feeds: batches to compare outputs on.
        tries: most files to make.
        progress: told about every one.
    """
    names = products(load_graph(source))
    groups = [list(group) for group in np.array_split(np.array(names), min(tries, len(names)))]
    plain = onnx_run(source)
    expected = [plain(each) for each in feeds]
    hurt = []
    with TemporaryDirectory() as folder:
        for group in track(groups, "ranking products by what int8 does to them", progress):
            path = Path(folder, "model.onnx")
            quantise(source, path, [name for name in names if name not in group])
            found = onnx_run(path)
            hurt.append(_error(expected, [found(each) for each in feeds]))
    return tuple(str(name) for place in np.argsort(hurt)[::-1] for name in groups[place])


def keep_sensitive(
    source: Path, target: Path, quantise: Quantise, ranking: Sequence[str], accept: Callable[[Path], bool]
) -> Quantised | None:
    """Leaves the first products of the ranking in fp32, as few as will do, up to half of them.

    The number is found by doubling and halving, which takes it that leaving more never makes it worse.

    Args:
        source: the fp32 file.
        target: the file to write.
        quantise: quantises the one to the other.
        ranking: products, the most sensitive ones first.
        accept: whether a file is accurate enough.

    Returns:
        The file that is, or None: then the last one that was tried is there.
    """
    most, least_bad, count = len(ranking) // 2, 0, 1
    while count <= most and not accept(quantise(source, target, ranking[:count]).path):
        least_bad, count = count, 2 * count
    if count > most:
        return None
    while count - least_bad > 1:
        between = (count + least_bad) // 2
        good = accept(quantise(source, target, ranking[:between]).path)
        least_bad, count = (least_bad, between) if good else (between, count)
    return quantise(source, target, ranking[:count])


def output_error(reference: Path, other: Path, feeds: Sequence[Arrays]) -> float:
    """Squared error of one file's outputs over the variance of the other's, the mean over outputs.

    Raises:
        VerificationFailed: ONNX Runtime cannot run one of them.
    """
    first, second = onnx_run(reference), onnx_run(other)
    return _error([first(each) for each in feeds], [second(each) for each in feeds])


def _error(expected: Sequence[Outputs], found: Sequence[Outputs]) -> float:
    shares = []
    for name in expected[0]:
        wanted = np.concatenate([each[name].ravel() for each in expected]).astype(np.float64)
        got = np.concatenate([each[name].ravel() for each in found]).astype(np.float64)
        shares.append(np.mean((got - wanted) ** 2) / max(float(np.var(wanted)), np.finfo(np.float64).tiny))
    return float(np.mean(shares))
