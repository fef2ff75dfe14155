"""A batch of tokenised examples: what a model is given, what it should answer, and which positions are what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from skillprune.families import Side

NO_TARGET = -100
"""Stands in ``targets`` where nothing is to be predicted; what PyTorch's losses ignore by default."""

_MASK = "attention_mask"


@dataclass(frozen=True)
class Batch:
    """Tokenised examples of like length.

    Attributes:
        inputs: The model's keyword arguments, each ``(batch, sequence)``; always with ``attention_mask``.
        labels: Class numbers, ``(batch,)``; zeros where the task has no classes.
        special: True at special tokens such as [CLS] and [SEP], False at padding, ``(batch, sequence)``.
        indices: Position of each example in what the batches were made from, ``(batch,)``.
        answer: Position whose output answers a prompt, ``(batch,)``; none where a head answers.
        targets: Token that each position should predict, `NO_TARGET` where none is, ``(batch, target)``; none where
            the task is to classify. In an encoder-decoder model positions are the decoder's, padded on the right, and
            ``inputs`` holds ``decoder_input_ids``.
        prompt: True at soft-prompt slots, ``(batch, sequence)``; none without a soft prompt.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    special: Tensor
    indices: Tensor
    answer: Tensor | None = None
    targets: Tensor | None = None
    prompt: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def mask(self) -> Tensor:
        """True at real tokens, special ones and soft-prompt slots included, False at padding: ``(batch, sequence)``."""
        return self.inputs[_MASK].bool()

    def mask_of(self, side: Side) -> Tensor:
        """True at the real positions that the blocks of one side run over."""
        if side == "input":
            return self.mask
        if self.targets is None:
            raise ValueError("a batch without targets has no output side")
        return self.targets != NO_TARGET

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def select(self, rows: Tensor) -> Batch:
        """Some of the examples, by index or by a mask ``(batch,)``; padding stays as it is."""
        return self._each(lambda tensor: tensor[rows.to(tensor.device)])

    def halves(self) -> tuple[Batch, Batch]:
        """The first and the second half of the examples."""
        first, second = torch.arange(len(self)).tensor_split(2)
        return self.select(first), self.select(second)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {"inputs": {name: change(tensor) for name, tensor in self.inputs.items()}}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = change(value)
        return replace(self, **changed)
