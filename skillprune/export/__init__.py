"""From a PyTorch model to ONNX files that are proven to compute the same; how fast they are is left to benchmark."""

from skillprune.export.artifact import OnnxArtifact
from skillprune.export.onnx import Arrays, check_parity, export_onnx

__all__ = ["Arrays", "OnnxArtifact", "check_parity", "export_onnx"]
