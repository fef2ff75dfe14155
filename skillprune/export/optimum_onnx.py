"""The exporter of optimum-onnx, which needs a line of transformers that it knows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from skillprune.errors import VerificationFailed
from skillprune.export.signature import Signature


def write_graph(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], signature: Signature, path: Path, opset: int
) -> None:
    """Writes the model's graph to ``path``; optimum makes up its own inputs, and its own names of them.

    Raises:
        VerificationFailed: optimum wrote something else than one graph.
    """
    from optimum.exporters.onnx import onnx_export_from_model
    from optimum.exporters.tasks import TasksManager

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx_export_from_model(
            model,
            path.parent,
            opset=opset,
            task=TasksManager.infer_task_from_model(model),
            do_validation=False,
            monolith=True,
        )
    written = sorted(path.parent.glob("*.onnx"))
    if [each.name for each in written] != [path.name]:
        raise VerificationFailed(f"optimum wrote {[each.name for each in written]} instead of one graph")
