"""The exporter of optimum-onnx, which needs a line of transformers that it knows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from skillprune.errors import VerificationFailed
from skillprune.export.signature import Signature
from skillprune.export.traceable import check_traceable


def write_graph(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], signature: Signature, path: Path, opset: int
) -> None:
    """Writes the model's graph to ``path``; optimum makes up its own inputs, and its own names of them.

    Raises:
        UnsupportedArchitecture: the model is a mixture of experts.
        VerificationFailed: optimum wrote something else than one graph.
    """
    check_traceable(model)
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
    if len(written) != 1:
        raise VerificationFailed(f"optimum wrote {[each.name for each in written]} instead of one graph")
    written[0].rename(path)  # optimum chooses the name
