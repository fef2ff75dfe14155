"""What a tracer must be told of modelling code that it cannot follow as it stands; `torchscript` does the tracing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from skillprune.errors import UnsupportedArchitecture
from skillprune.export.masks import traceable_masks
from skillprune.families import Mixture, find_ffns


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
def traceable() -> Iterator[None]:
    """Inside the context a tracer follows masks and rotations of decoders on every supported transformers."""
    with traceable_masks(), _Interleaved():
        yield


def check_traceable(model: PreTrainedModel) -> None:
    """Refuses mixtures: a trace holds the experts that its example went to, and no others.

    Raises:
        UnsupportedArchitecture: it is one.
    """
    if any(isinstance(ffn, Mixture) for ffn in find_ffns(model)):
        raise UnsupportedArchitecture(
            f"{type(model).__name__} sends tokens to experts, which no trace can follow: run it in PyTorch"
        )
