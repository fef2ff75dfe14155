"""Whether a provider starts on this machine; that it is installed says little."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from onnx import TensorProto, helper

from skillprune.benchmark.sessions import open_session


def check_start(provider: str) -> None:
    """Opens a graph of one node, since a provider that is installed may still not start on this machine.

    Raises:
        ProviderUnavailable: the provider is unknown, not installed, or not the one that runs.
    """
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "start", [value], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with TemporaryDirectory() as folder:
        path = Path(folder, "start.onnx")
        path.write_bytes(model.SerializeToString())
        open_session(path, threads=1, provider=provider)
