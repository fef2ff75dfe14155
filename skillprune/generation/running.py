"""Runs a graph once, with what it gives left on the device that computes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

Tokens = NDArray[np.int64]


def run(
    session: onnxruntime.InferenceSession, feeds: Mapping[str, Tokens | OrtValue], wanted: set[str] | None
) -> dict[str, OrtValue]:
    """Runs a graph once; what it gives stays on the device that computes, but for the logits.

    Args:
        session: an open session.
        feeds: by name; those that the graph does not have are left out.
        wanted: names of the outputs to compute, all when None.
    """
    device = "cuda" if session.get_providers()[0] == "CUDAExecutionProvider" else "cpu"
    binding = session.io_binding()
    for name in (given.name for given in session.get_inputs()):
        value = feeds[name]
        held = value if isinstance(value, OrtValue) else OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))
        binding.bind_ortvalue_input(name, held)
    names = [given.name for given in session.get_outputs() if wanted is None or given.name in wanted]
    for name in names:
        binding.bind_output(name, "cpu" if name == "logits" else device)
    session.run_with_iobinding(binding)
    return dict(zip(names, binding.get_outputs(), strict=True))
