"""`OnnxArtifact`: one exported file with the proof that it computes what it was made from does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class OnnxArtifact:
    """One exported model.

    Attributes:
        variant: numeric variant, such as ``fp32``.
        path: the ONNX file; weights above protobuf's limit lie beside it.
        bytes: their size together.
        backend: the exporter that wrote it, with what was fused afterwards.
        opset: ONNX operator set.
        max_abs_diff: largest difference of an output over the inputs that were tried: of fp32 files from PyTorch, of
            others from the fp32 file they were made from.
        tolerance: the difference that was allowed; None where another measure decides.
    """

    variant: str
    path: Path
    bytes: int
    backend: str
    opset: int
    max_abs_diff: float
    tolerance: float | None

    def __str__(self) -> str:
        allowed = "" if self.tolerance is None else f" ({self.tolerance:.2g} allowed)"
        source = "PyTorch" if self.variant == "fp32" else "fp32"
        parity = f"differs from {source} by {self.max_abs_diff:.2g} at most{allowed}"
        return f"  {self.path}  {self.bytes:,} bytes, {self.backend}, opset {self.opset}, {parity}"
