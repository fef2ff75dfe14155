"""`OnnxArtifact`: one exported file with the proof that it computes what PyTorch does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class OnnxArtifact:
    """One exported model.

    Attributes:
        variant: numeric variant, ``fp32``.
        path: the ONNX file.
        bytes: its size.
        backend: the exporter that wrote it.
        opset: ONNX operator set.
        max_abs_diff: largest difference of a logit from PyTorch over the shapes that were tried.
        tolerance: the difference that was allowed.
    """

    variant: str
    path: Path
    bytes: int
    backend: str
    opset: int
    max_abs_diff: float
    tolerance: float

    def __str__(self) -> str:
        parity = f"differs from PyTorch by {self.max_abs_diff:.2g} at most ({self.tolerance:.2g} allowed)"
        return f"  {self.path}  {self.bytes:,} bytes, opset {self.opset}, {parity}"
