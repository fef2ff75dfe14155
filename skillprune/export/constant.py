"""Tells a tracer that an FFN without neurons is its bias, whatever it reads, so that a graph holds nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from skillprune.families import find_ffns


@contextmanager
def constant_where_empty(model: PreTrainedModel) -> Iterator[None]:
    """Inside the context every FFN of zero width gives one vector ``(hidden,)``, which the residual sum broadcasts."""
    with ExitStack() as hooks:
        for ffn in find_ffns(model):
            if ffn.width == 0:
                hooks.callback(ffn.down.module.register_forward_hook(_bias).remove)
        yield


def _bias(down: nn.Linear, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.new_zeros(output.shape[-1:]) if down.bias is None else down.bias
