"""Tiny ONNX graphs whose work and outputs are known; shared by the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

HIDDEN = 64


def weights(width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(width)
    up = rng.normal(size=(HIDDEN, width)).astype(np.float32)
    return up, rng.normal(size=(width, HIDDEN)).astype(np.float32) / np.float32(width)


def write_ffn(path: Path, width: int) -> Path:
    """An ONNX file that computes ``relu(x @ up) @ down`` for ``x`` of ``(batch, sequence, HIDDEN)``."""
    up, down = weights(width)
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "down"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", "sequence", HIDDEN]) for n in ("x", "y")]
    inits = [numpy_helper.from_array(up, "up"), numpy_helper.from_array(down, "down")]
    graph = helper.make_graph(nodes, "ffn", ends[:1], ends[1:], inits)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path
