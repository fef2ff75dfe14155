"""The TorchScript-based exporter: today the one whose graphs run fastest on ONNX Runtime's CPU provider."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from skillprune.export.signature import Axes, Results, Signature
from skillprune.export.traceable import check_traceable, traceable

OPSET = 17
"""The fastest operator set: newer ones have Gelu as an operator, which ONNX Runtime's CPU kernels run no faster."""


def write_graph(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], signature: Signature, path: Path, opset: int
) -> None:
    """Writes the model's graph.

    A model loaded with eager attention traces to fewer nodes than one with the fused kernel, and runs faster exported.

    Args:
        model: in evaluation mode.
        inputs: example inputs by name.
        signature: what the graph takes and gives.
        path: the file to write; weights of large models may come to lie beside it.
        opset: ONNX operator set; ONNX Runtime fuses the decomposed GELU of older ones itself.

    Raises:
        UnsupportedArchitecture: the model is a mixture of experts.
    """
    check_traceable(model)
    # The exporter restores the mode of what it is given, so the wrapper must be in the mode of the model.
    trace(Results(model, signature).eval(), inputs, list(signature.outputs), signature.axes, path, opset)


def trace(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    axes: Mapping[str, Axes],
    path: Path,
    opset: int = OPSET,
) -> None:
    """Writes the graph of a module that takes and returns tensors by place.

    Args:
        module: in evaluation mode.
        inputs: what it takes, in order, by the names the graph gives them.
        outputs: names of what it returns, in order.
        axes: the axes that move, by input or output.
        path: the file to write.
        opset: ONNX operator set.
    """
    # The exporter prints the whole graph when it fails; what a program says on its output must stay readable.
    torch._C._jit_set_onnx_log_output_stream("stderr")
    with warnings.catch_warnings(), torch.inference_mode(), traceable():
        # The exporter announces that it is no longer the default, and traces shape checks it cannot follow; parity is
        # measured afterwards at other shapes than the traced one.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: dict(moving) for name, moving in axes.items()},
            opset_version=opset,
            dynamo=False,
        )
