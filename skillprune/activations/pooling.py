"""Turns a sequence of activations into one number per neuron, or one per soft-prompt slot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from skillprune.data import Batch
from skillprune.errors import DataError
from skillprune.families import Side

Position = Literal["prompt", "mask", "cls", "last", "mean", "max"]
"""Which tokens stand for a sequence."""


@dataclass(frozen=True)
class Reading:
    """Where pooled criteria read.

    Attributes:
        position: ``prompt`` every soft-prompt slot by itself, ``mask`` the token that answers a prompt, ``cls`` the
            first real token, ``last`` the last one, ``mean`` and ``max`` over real tokens. Padding never counts.
        include_special: whether ``mean`` and ``max`` read special tokens, as the skill neurons of the literature do.
        include_prompt: whether ``mean`` and ``max`` read soft-prompt slots.
    """

    position: Position = "mean"
    include_special: bool = True
    include_prompt: bool = False


def pool(activations: Tensor, batch: Batch, reading: Reading, side: Side = "input") -> Tensor:
    """Turns ``(batch, sequence, neurons)`` into ``(batch, positions, neurons)``, in float32 at least.

    There is one position, except with ``prompt``, where there are as many as slots.

    Raises:
        DataError: the batch has no such position.
    """
    precise = activations.to(torch.promote_types(activations.dtype, torch.float32))
    return _POOLS[reading.position](precise, batch, reading, side)


def _prompt(activations: Tensor, batch: Batch, reading: Reading, side: Side) -> Tensor:
    if batch.prompt is None or side == "output":
        raise DataError("there are no soft-prompt positions to read; tune a prompt, or choose another position")
    return activations[batch.prompt].view(len(batch), -1, activations.shape[2])


def _mask(activations: Tensor, batch: Batch, reading: Reading, side: Side) -> Tensor:
    if batch.answer is None or side == "output":
        raise DataError("no position answers a prompt here; position 'mask' needs a task with a template")
    return _take(activations, batch.answer)


def _cls(activations: Tensor, batch: Batch, reading: Reading, side: Side) -> Tensor:
    return _take(activations, _readable(batch, side).to(torch.uint8).argmax(dim=1))


def _last(activations: Tensor, batch: Batch, reading: Reading, side: Side) -> Tensor:
    backwards = _readable(batch, side).to(torch.uint8).flip(1).argmax(dim=1)
    return _take(activations, activations.shape[1] - 1 - backwards)


def _mean(activations: Tensor, batch: Batch, reading: Reading, side: Side) -> Tensor:
    mask = _chosen(batch, reading, side)
    # Deviations from the first token, so that a constant neuron has exactly the same mean at every length.
    first = _take(activations, mask.to(torch.uint8).argmax(dim=1))
    weights = mask.to(activations.dtype) / mask.sum(dim=1, keepdim=True)
    # Not weighed by zero: padding may hold infinities, which that would turn into NaN.
    deviations = silenced_(activations - first, ~mask)
    return first + torch.bmm(weights.unsqueeze(1), deviations)


def _max(activations: Tensor, batch: Batch, reading: Reading, side: Side) -> Tensor:
    mask = _chosen(batch, reading, side)
    return activations.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(dim=1, keepdim=True)


_POOLS: dict[str, Callable[[Tensor, Batch, Reading, Side], Tensor]] = {
    "prompt": _prompt,
    "mask": _mask,
    "cls": _cls,
    "last": _last,
    "mean": _mean,
    "max": _max,
}


def silenced_(values: Tensor, where: Tensor) -> Tensor:
    """``(batch, sequence, neurons)`` with zeros at some positions ``(batch, sequence)``; in place where contiguous."""
    rows = values.reshape(-1, values.shape[-1])
    return rows.index_fill_(0, where.flatten().nonzero().squeeze(1), 0).view(values.shape)


def _take(activations: Tensor, places: Tensor) -> Tensor:
    rows = torch.arange(len(activations), device=activations.device)
    return activations[rows, places.to(activations.device)].unsqueeze(1)


def _readable(batch: Batch, side: Side) -> Tensor:
    """Real positions that are no soft-prompt slots."""
    mask = batch.mask_of(side)
    return mask if batch.prompt is None or side == "output" else mask & ~batch.prompt


def _chosen(batch: Batch, reading: Reading, side: Side) -> Tensor:
    mask = batch.mask_of(side) if reading.include_prompt else _readable(batch, side)
    if reading.include_special or side == "output":
        return mask
    mask = mask & ~batch.special
    if not bool(mask.any(dim=1).all()):
        raise DataError("an example has nothing but special tokens, and special tokens are not to be read")
    return mask
