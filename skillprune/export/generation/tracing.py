"""Traces one module to one ONNX file with axes that move; what the module computes is left to its callers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from skillprune.errors import VerificationFailed
from skillprune.export import torchscript
from skillprune.export.constant import constant_where_empty
from skillprune.export.generation.masks import traceable_masks
from skillprune.export.signature import Axes
from skillprune.export.staging import first_line, is_of_disk

Moving = Mapping[str, Axes]
"""The axes that move, by input or output."""


class _Interleaved(TorchFunctionMode):
    """Repeats elements side by side by what the exporter can write; it cannot write ``repeat_interleave``."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (torch.repeat_interleave, Tensor.repeat_interleave):
            return _interleaved(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _interleaved(values: Tensor, repeats: int, dim: int) -> Tensor:
    place = dim % values.dim()
    return torch.stack([values] * repeats, dim=place + 1).flatten(place, place + 1)


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


@contextmanager
def traceable(model: PreTrainedModel) -> Iterator[None]:
    """Inside the context a tracer follows the model, and an FFN without neurons is its bias."""
    with traceable_masks(), constant_where_empty(model), _Interleaved():
        yield


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
