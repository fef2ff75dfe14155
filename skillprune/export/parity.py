"""Whether a file computes what it was made from does: every output, on inputs of several shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from skillprune.errors import ParityError, VerificationFailed
from skillprune.export.signature import Arrays, results
from skillprune.export.staging import open_checked

Outputs = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], Outputs]

TOLERANCE = 1e-4
"""Largest difference of an output that float32 files may show, relative to its largest value (at least 1)."""


def check_parity(model: PreTrainedModel, path: Path, inputs: Sequence[Arrays]) -> tuple[float, float]:
    """The largest difference of an output between PyTorch and the file, and the tolerance it is within.

    Args:
        model: in evaluation mode.
        path: the file.
        inputs: by name, of several shapes.

    Raises:
        ParityError: some output exceeds the tolerance at some shape.
        VerificationFailed: ONNX Runtime cannot load the file, or cannot run it at other shapes than the traced one.
    """

    def torch_run(arrays: Arrays) -> Outputs:
        found = results(model, arrays)
        return {name: tensor.float().cpu().numpy() for name, tensor in found.items()}

    found, worst, allowed = onnx_run(path), 0.0, TOLERANCE
    for arrays in inputs:
        for name, difference, scale in _differences(torch_run(arrays), found(arrays)):
            tolerance = TOLERANCE * max(1.0, scale)
            if not difference <= tolerance:
                shape = next(iter(arrays.values())).shape
                raise ParityError(f"{path.name}: {name} at shape {shape}", difference, tolerance)
            worst, allowed = max(worst, difference), max(allowed, tolerance)
    return worst, allowed


def largest_difference(reference: Path, other: Path, inputs: Sequence[Arrays]) -> float:
    """The largest difference of an output between two files.

    Raises:
        VerificationFailed: ONNX Runtime cannot run one of them.
    """
    first, second = onnx_run(reference), onnx_run(other)
    return max(each[1] for arrays in inputs for each in _differences(first(arrays), second(arrays)))


def onnx_run(path: Path) -> Run:
    """Opens a file with ONNX Runtime's plain settings; what is called gives all outputs by name.

    Raises:
        VerificationFailed: ONNX Runtime cannot load the file; from the call: or run it at a shape.
    """
    session = open_checked(path)
    taken = [given.name for given in session.get_inputs()]
    names = [given.name for given in session.get_outputs()]

    def run(arrays: Arrays) -> Outputs:
        if missing := [name for name in taken if name not in arrays]:
            raise VerificationFailed(f"{path.name} also takes {', '.join(missing)}, of which no example was given")
        try:
            found = session.run(names, {name: arrays[name] for name in taken})
        except Exception as refused:  # ONNX Runtime raises its own unrelated types
            shapes = {name: arrays[name].shape for name in taken}
            raise VerificationFailed(
                f"{path.name} does not run at {shapes}; the exporter may have fixed an axis: {refused}"
            ) from refused
        return dict(zip(names, map(np.asarray, found), strict=True))

    return run


def _differences(expected: Outputs, found: Outputs) -> Iterator[tuple[str, float, float]]:
    """Of every output: its name, its largest difference, and its largest value.

    Raises:
        VerificationFailed: an output is missing or has another shape.
    """
    for name, wanted in expected.items():
        if name not in found or found[name].shape != wanted.shape:
            has = found[name].shape if name in found else "nothing"
            raise VerificationFailed(f"the output {name} should be of shape {wanted.shape}; the file gives {has}")
        # Where both are infinite, as masked scores are, they agree.
        same = found[name] == wanted
        difference = np.where(same, 0.0, np.abs(np.where(same, 0.0, found[name]) - np.where(same, 0.0, wanted)))
        finite = np.abs(wanted[np.isfinite(wanted)])
        yield name, float(difference.max(initial=0.0)), float(finite.max(initial=0.0))
