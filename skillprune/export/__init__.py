"""From a PyTorch model to ONNX files that are proven to compute the same; how fast they are is left to benchmark."""

from skillprune.export.artifact import OnnxArtifact
from skillprune.export.backends import BACKENDS, check_opset, find_backend, is_usable, usable_of
from skillprune.export.calibration import Ranges, calibrate
from skillprune.export.candidates import Candidates, Refused, export_candidates
from skillprune.export.files import size_of
from skillprune.export.float16 import to_float16
from skillprune.export.fused import FUSIONS, fuse_onnx
from skillprune.export.onnx import export_onnx
from skillprune.export.parity import check_parity, largest_difference
from skillprune.export.quantisation import Quantised, quantise_dynamic, quantise_static, saturates
from skillprune.export.sensitive import Quantise, keep_sensitive, output_error, sensitivity
from skillprune.export.signature import Arrays
from skillprune.export.staging import first_line

__all__ = [
    "BACKENDS",
    "FUSIONS",
    "Arrays",
    "Candidates",
    "OnnxArtifact",
    "Quantise",
    "Quantised",
    "Ranges",
    "Refused",
    "calibrate",
    "check_opset",
    "check_parity",
    "export_candidates",
    "export_onnx",
    "find_backend",
    "first_line",
    "fuse_onnx",
    "is_usable",
    "keep_sensitive",
    "largest_difference",
    "output_error",
    "quantise_dynamic",
    "quantise_static",
    "saturates",
    "sensitivity",
    "size_of",
    "to_float16",
    "usable_of",
]
