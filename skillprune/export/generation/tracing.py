"""Traces one module to one ONNX file with axes that move; what the module computes is left to its callers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel

from skillprune.errors import VerificationFailed
from skillprune.export import torchscript
from skillprune.export.signature import Axes
from skillprune.export.staging import first_line, is_of_disk

Moving = Mapping[str, Axes]
"""The axes that move, by input or output."""


@contextmanager
def spelled_out(model: PreTrainedModel) -> Iterator[None]:
    """Inside the context the model's attention is eager, which is traced and what a graph is compared with.

    Some fused kernels leave out what a config asks for: with them version 4.57 caps no logits of Gemma 2's attention.
    """
    attention = model.config._attn_implementation
    if attention == "eager":
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(attention)


def trace(module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], axes: Moving, path: Path) -> None:
    """Writes the graph of a module that takes and returns tensors by place.

    Args:
        module: in evaluation mode.
        inputs: what it takes, in order, by the names the graph gives them.
        outputs: names of what it returns, in order.
        axes: the axes that move.
        path: the file to write.

    Raises:
        VerificationFailed: the exporter cannot write this module.
    """
    try:
        torchscript.trace(module, inputs, outputs, axes, path)
    except Exception as failed:  # tracing fails in every way there is
        if is_of_disk(failed):
            raise
        raise VerificationFailed(f"{path.name} cannot be traced from this model: {first_line(failed)}") from failed
