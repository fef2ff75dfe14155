"""Writes text with the ONNX files of a model; needs no PyTorch.

Exporting the files is left to `export`, timing them to `benchmark`.
"""

from skillprune.generation.greedy import generate_greedy, left_padded, unheeded
from skillprune.generation.signs import Signs, read_signs
from skillprune.generation.writers import (
    DECODER,
    ENCODER,
    FIRST,
    NEXT,
    DecoderWriter,
    EncoderDecoderWriter,
    Feeds,
    State,
    Writer,
    load_writer,
)

__all__ = [
    "DECODER",
    "ENCODER",
    "FIRST",
    "NEXT",
    "DecoderWriter",
    "EncoderDecoderWriter",
    "Feeds",
    "Signs",
    "State",
    "Writer",
    "generate_greedy",
    "left_padded",
    "load_writer",
    "read_signs",
    "unheeded",
]
