"""Streams FFN activations out of a running model, one layer at a time; what they mean is left to scoring and repair.

A neuron's activation is one coordinate of the input of its down projection, whatever the block around it looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from skillprune.data import Batch
from skillprune.families import FFN
from skillprune.progress import Progress, silent, track

Position = Literal["cls", "mean", "max"]
"""Which number stands for a sequence of activations of one neuron."""

Visit = Callable[[FFN, Tensor, Batch], None]
"""Receives an FFN, its activations ``(batch, sequence, neurons)`` and the batch they come from."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time of the context; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the first input of every call of ``module``; a chunked feed-forward makes several calls per batch."""
    calls: list[Tensor] = []

    def remember(_: nn.Module, args: tuple[Any, ...]) -> None:
        calls.append(args[0].detach())

    handle = module.register_forward_pre_hook(remember)
    try:
        yield calls
    finally:
        handle.remove()


def joined(calls: list[Tensor]) -> Tensor:
    """Puts the chunks of one forward pass back together along the sequence and forgets them."""
    whole = calls[0] if len(calls) == 1 else torch.cat(calls, dim=1)
    calls.clear()
    return whole


def stream_activations(
    model: PreTrainedModel,
    ffns: Sequence[FFN],
    batches: Sequence[Batch],
    visit: Visit,
    *,
    what: str = "activations",
    progress: Progress = silent,
) -> None:
    """Runs the model once per batch and hands each layer's activations to ``visit`` as soon as its block is done.

    Only one layer's activations are alive at a time, so memory does not grow with depth or with the number of batches.
    Every module is left in the mode it came in, without hooks, whatever happens.
    """
    current: list[Batch] = []
    with evaluating(model), ExitStack() as hooks, torch.inference_mode():
        for ffn in ffns:
            calls = hooks.enter_context(inputs_of(ffn.down))
            handle = ffn.block.register_forward_hook(_deliver(ffn, calls, current, visit))
            hooks.callback(handle.remove)
        for batch in track(batches, what, progress):
            current[:] = [batch.to(model.device)]
            model(**current[0].inputs)


def pool(activations: Tensor, batch: Batch, position: Position) -> Tensor:
    """Turns ``(batch, sequence, neurons)`` into ``(batch, neurons)``; padding never counts, special tokens do.

    ``cls`` takes the first real token, ``mean`` the mean and ``max`` the largest value over real tokens. The result has
    float32 at least, whatever the model computes in.
    """
    return _POOLS[position](activations.to(torch.promote_types(activations.dtype, torch.float32)), batch.mask)


def _deliver(
    ffn: FFN, calls: list[Tensor], current: list[Batch], visit: Visit
) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(_: nn.Module, __: tuple[Any, ...], ___: Any) -> None:
        visit(ffn, joined(calls), current[0])

    return hook


def _first(activations: Tensor, mask: Tensor) -> Tensor:
    first = mask.to(torch.uint8).argmax(dim=1)
    return activations[torch.arange(len(activations), device=activations.device), first]


def _mean(activations: Tensor, mask: Tensor) -> Tensor:
    # Deviations from the first token, so that a constant neuron has exactly the same mean at every length.
    first = _first(activations, mask)
    weights = (mask / mask.sum(dim=1, keepdim=True)).to(activations.dtype)
    return first + torch.bmm(weights.unsqueeze(1), activations - first.unsqueeze(1)).squeeze(1)


def _max(activations: Tensor, mask: Tensor) -> Tensor:
    return activations.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(dim=1)


_POOLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cls": _first, "mean": _mean, "max": _max}
