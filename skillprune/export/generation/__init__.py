"""Models that write, as ONNX files with their caches; running them is `skillprune.generation`'s."""

from skillprune.export.generation.exporting import export_decoder, export_encoder_decoder
from skillprune.export.generation.parity import check_writer

__all__ = ["check_writer", "export_decoder", "export_encoder_decoder"]
