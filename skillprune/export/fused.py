"""Graphs in which ONNX Runtime's optimizer has put one operator in the place of many; whether that pays is measured."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from transformers import PretrainedConfig, PreTrainedModel

from skillprune.activations import evaluating
from skillprune.errors import VerificationFailed
from skillprune.export.artifact import OnnxArtifact
from skillprune.export.files import save, size_of
from skillprune.export.parity import check_parity
from skillprune.export.signature import Arrays
from skillprune.export.staging import staged

FUSIONS = ("attention", "fused")
"""What can be fused: attention alone, or all that the optimizer knows."""

_FUSED_DOMAIN = "com.microsoft"
_KINDS = {"vit": "vit", "deit": "vit", "beit": "vit"}
"""The optimizer's word for an architecture; readers of text are all like BERT to it."""


def fuse_onnx(
    model: PreTrainedModel, artifact: OnnxArtifact, inputs: Sequence[Arrays], path: Path, fusion: str
) -> OnnxArtifact | None:
    """Writes a fused copy of an fp32 file and compares it with PyTorch; None where nothing in it can be fused.

    Args:
        model: what the file was exported from.
        artifact: the file.
        inputs: inputs to compare on, of at least two shapes.
        path: the fused file.
        fusion: one of `FUSIONS`.

    Raises:
        ParityError: an output differs by more than the tolerance; the file is not kept.
        VerificationFailed: the optimizer failed, or ONNX Runtime cannot run what it wrote.
        ResourceFailure: the file could not be written.
    """
    graph = _fused(artifact.path, model.config, fusion)
    if graph is None:
        return None
    with staged(path) as fresh, evaluating(model):
        save(graph, fresh)
        difference, tolerance = check_parity(model, fresh, inputs)
    return replace(
        artifact,
        path=path,
        bytes=size_of(path),
        backend=f"{artifact.backend}+{fusion}",
        max_abs_diff=difference,
        tolerance=tolerance,
    )


def _fused(path: Path, config: PretrainedConfig, fusion: str) -> onnx.ModelProto | None:
    """The graph with fused operators, or None where there are none."""
    # Importing it puts the folder of ONNX Runtime's tools on the import path: not before someone wants them.
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    kind = _KINDS.get(config.model_type, "bert")
    options = FusionOptions(kind)
    if kind == "bert":
        options.use_raw_attention_mask()  # the other form wants all padding on the right
    if fusion == "attention":
        _nothing_else(options)
    with _quiet():
        try:
            found = optimize_model(
                str(path),
                kind,
                num_heads=getattr(config, "num_attention_heads", 0),
                hidden_size=getattr(config, "hidden_size", 0),
                optimization_options=options,
                opt_level=0,
            )
        except Exception as failed:  # it fails in every way there is on graphs that it was not made for
            raise VerificationFailed(f"ONNX Runtime's optimizer failed: {type(failed).__name__}: {failed}") from failed
    graph: onnx.ModelProto = found.model
    del graph.graph.value_info[:]  # as in `settle`
    if all(node.domain != _FUSED_DOMAIN for node in graph.graph.node):
        return None
    if all(each.domain != _FUSED_DOMAIN for each in graph.opset_import):  # the optimizer leaves it out at level 0
        graph.opset_import.append(onnx.helper.make_opsetid(_FUSED_DOMAIN, 1))
    return graph


def _nothing_else(options: Any) -> None:
    """Leaves attention alone to be fused."""
    options.enable_gelu = options.enable_bias_gelu = options.enable_gelu_approximation = False
    options.enable_layer_norm = options.enable_skip_layer_norm = options.enable_bias_skip_layer_norm = False
    options.enable_embed_layer_norm = options.enable_qordered_matmul = False


@contextmanager
def _quiet() -> Iterator[None]:
    """The optimizer tells what it could not fuse, which a graph without fused operators shows as well."""
    logger = logging.getLogger("onnxruntime.transformers")
    loggers = [logger, *(logging.getLogger(name) for name in logging.root.manager.loggerDict if "fusion" in name)]
    before = [each.disabled for each in loggers]
    for each in loggers:
        each.disabled = True
    try:
        yield
    finally:
        for each, was in zip(loggers, before, strict=True):
            each.disabled = was
