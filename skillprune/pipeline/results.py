"""The values that stages hand on and the run directory keeps as JSON."""

from __future__ import annotations

from dataclasses import dataclass

from skillprune.evaluation import Comparison
from skillprune.export import OnnxArtifact


@dataclass(frozen=True)
class Exports:
    """The ONNX files of one variant, before and after pruning."""

    dense: OnnxArtifact
    pruned: OnnxArtifact

    def __str__(self) -> str:
        return f"{self.dense}\n{self.pruned}"


@dataclass(frozen=True)
class Quality:
    """The metric on the test split.

    Attributes:
        dense: the model as it came, in PyTorch.
        pruned: the reloaded pruned checkpoint, in PyTorch.
        onnx: the shipped ONNX file.
        comparison: shipped ONNX file against dense.
    """

    dense: float
    pruned: float
    onnx: float
    comparison: Comparison
