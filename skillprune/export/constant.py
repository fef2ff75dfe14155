"""Tells a tracer that an FFN without neurons is its bias, whatever it reads, so that a graph holds nothing of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from skillprune.families import find_ffns


@contextmanager
def constant_where_empty(model: PreTrainedModel) -> Iterator[None]:
    """Inside the context every FFN of zero width gives one vector ``(hidden,)``, which the residual sum broadcasts."""
    empty = [ffn for ffn in find_ffns(model) if ffn.width == 0]
    with ExitStack() as stack:
        for ffn in empty:
            stack.callback(ffn.down.module.register_forward_hook(_bias).remove)
        if empty:
            stack.enter_context(_SumsElsewhere())
        yield


class _SumsElsewhere(TorchFunctionMode):
    """Makes ``a += b`` a new tensor where ``a`` has no room for it: Falcon's block adds to what its FFN gives."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        narrow = func is Tensor.add_ and isinstance(args[1], Tensor) and args[0].dim() < args[1].dim()
        return (Tensor.add if narrow else func)(*args, **(kwargs or {}))


def _bias(down: nn.Linear, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.new_zeros(output.shape[-1:]) if down.bias is None else down.bias
