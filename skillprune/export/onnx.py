"""Exports a model to ONNX and refuses a file that does not compute what PyTorch computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from skillprune.activations import evaluating
from skillprune.errors import SkillPruneError, VerificationFailed
from skillprune.export.artifact import OnnxArtifact
from skillprune.export.backends import find_backend
from skillprune.export.constant import constant_where_empty
from skillprune.export.files import SPLIT_ABOVE, settle, size_of
from skillprune.export.kept import kept
from skillprune.export.parity import check_parity
from skillprune.export.signature import Arrays, as_tensors, signature_of
from skillprune.export.staging import first_line, is_of_disk, staged


def export_onnx(
    model: PreTrainedModel,
    inputs: Sequence[Arrays],
    path: Path,
    *,
    backend: str = "torchscript",
    opset: int | None = None,
    split_above: int = SPLIT_ABOVE,
) -> OnnxArtifact:
    """Writes ``path`` and compares it with PyTorch on every one of ``inputs``.

    Args:
        model: an encoder with or without a head, or a classifier of any kind, in float32.
        inputs: at least two inputs of different shapes, the first of which is traced. Padding should occur.
        path: the ONNX file; its directory is created. An older file stays until the new one has passed.
        backend: the exporter, one of `BACKENDS`.
        opset: ONNX operator set; None takes the exporter's own.
        split_above: bytes above which the weights go to ``path`` with ``.data`` at its end.

    Raises:
        MissingExtra: the exporter is not installed.
        UnsupportedExport: the exporter cannot write that operator set.
        ParityError: an output differs by more than the tolerance at some shape; the file is not kept.
        VerificationFailed: the exporter failed, or ONNX Runtime cannot load the file or run it at another shape.
        ResourceFailure: the file could not be written.
    """
    exporter = find_backend(backend)
    written = exporter.choose_opset(backend, opset)
    with staged(path) as fresh, evaluating(model):
        signature = signature_of(model, inputs)
        try:
            with constant_where_empty(model), kept(model):
                exporter.write(model, as_tensors(model, inputs[0]), signature, fresh, written)
        except SkillPruneError:
            raise
        except Exception as failed:  # exporters fail in every way there is
            if is_of_disk(failed):
                raise
            raise VerificationFailed(f"the exporter {backend} failed: {first_line(failed)}") from failed
        settle(fresh, split_above=split_above)
        difference, tolerance = check_parity(model, fresh, inputs)
    return OnnxArtifact("fp32", path, size_of(path), backend, written, difference, tolerance)
