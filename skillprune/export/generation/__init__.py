"""Models that write, as ONNX files with their caches; running them is `skillprune.generation`'s."""

from skillprune.export.generation.exporting import check_writable, export_decoder, export_encoder_decoder
from skillprune.export.generation.parity import check_writer, writers_apart

__all__ = ["check_writable", "check_writer", "export_decoder", "export_encoder_decoder", "writers_apart"]
