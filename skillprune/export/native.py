"""The dynamo-based exporters: transformers' own where this transformers has one, else torch's."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from skillprune.export.signature import Results, Signature


def write_graph(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], signature: Signature, path: Path, opset: int
) -> None:
    """Writes the model's graph, with its weights beside it; arguments as in `torchscript.write_graph`."""
    with _quiet(), torch.no_grad():
        if find_spec("transformers.exporters") is None:
            _with_torch(model, inputs, signature, path, opset)
        else:
            _with_transformers(model, inputs, signature, path, opset)


def _with_transformers(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], signature: Signature, path: Path, opset: int
) -> None:
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    config = OnnxConfig(opset_version=opset, dynamic_shapes=_dynamic(signature))
    exporter = OnnxExporter()
    program, _ = exporter.export_program(model, {**inputs, **signature.settings}, config)
    exporter.save_program(program, path)


def _with_torch(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], signature: Signature, path: Path, opset: int
) -> None:
    program = torch.onnx.export(
        Results(model, signature).eval(),
        tuple(inputs.values()),
        input_names=list(signature.inputs),
        output_names=list(signature.outputs),
        dynamic_shapes=(tuple(_dynamic(signature).values()),),
        opset_version=opset,
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # what the dynamo-based exporter gives back
    program.save(str(path), external_data=True)


def _dynamic(signature: Signature) -> dict[str, dict[int, object]]:
    return {name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for name, axes in signature.inputs.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters tell their steps and what they could not register; whether the file is right is seen afterwards."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "transformers.exporters")
    told = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in told]
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        for logger in told:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(told, levels, strict=True):
                logger.setLevel(level)
