"""Exports a classifier to ONNX and refuses a file that does not compute what PyTorch computes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from skillprune.activations import evaluating
from skillprune.errors import ParityError, ResourceFailure, VerificationFailed
from skillprune.export.artifact import OnnxArtifact
from skillprune.export.torchscript import OPSET, write_graph

Arrays = Mapping[str, NDArray[np.int64]]

TOLERANCE = 1e-4
"""Largest difference of a logit that float32 files may show, relative to the largest logit (at least 1)."""


def export_onnx(model: PreTrainedModel, inputs: Sequence[Arrays], path: Path, *, variant: str = "fp32") -> OnnxArtifact:
    """Writes ``path`` and compares it with PyTorch on every one of ``inputs``.

    Args:
        model: a classifier in float32.
        inputs: at least two inputs of different shapes, the first of which is traced. Padding should occur.
        path: the ONNX file; its directory is created. An older file stays until the new one has passed.
        variant: numeric variant the artefact is called by.

    Raises:
        ParityError: a logit differs by more than the tolerance at some shape; the file is not kept.
        VerificationFailed: ONNX Runtime cannot load the file.
        ResourceFailure: the file could not be written.
    """
    fresh = path.with_name(f".{path.name}.partial")
    traced = {name: torch.from_numpy(array).to(model.device) for name, array in inputs[0].items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with evaluating(model):
            write_graph(model, traced, fresh)
            difference, tolerance = check_parity(model, fresh, inputs)
        os.replace(fresh, path)
    except OSError as failed:
        raise ResourceFailure(f"{path} could not be written: {failed}") from failed
    finally:
        with suppress(OSError):
            fresh.unlink()
    return OnnxArtifact(variant, path, path.stat().st_size, "torchscript", OPSET, difference, tolerance)


def check_parity(model: PreTrainedModel, path: Path, inputs: Sequence[Arrays]) -> tuple[float, float]:
    """The largest difference of a logit between PyTorch and the file, and the tolerance it is within.

    Raises:
        ParityError: some shape exceeds the tolerance.
        VerificationFailed: ONNX Runtime cannot load the file.
    """
    session = _plain_session(path)
    worst, allowed = 0.0, TOLERANCE
    for arrays in inputs:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array).to(model.device) for name, array in arrays.items()}
            expected = model(**tensors).logits.float().cpu().numpy()
        found = session.run(["logits"], dict(arrays))[0]
        tolerance = TOLERANCE * max(1.0, float(np.abs(expected).max()))
        difference = float(np.abs(found - expected).max())
        if not difference <= tolerance:
            raise ParityError(f"{path.name} at shape {next(iter(arrays.values())).shape}", difference, tolerance)
        worst, allowed = max(worst, difference), max(allowed, tolerance)
    return worst, allowed


def _plain_session(path: Path) -> onnxruntime.InferenceSession:
    try:
        onnx.checker.check_model(str(path))
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as broken:  # both libraries raise their own unrelated types
        raise VerificationFailed(f"{path} is not a graph ONNX Runtime can run: {broken}") from broken
