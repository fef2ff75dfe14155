"""What each position of a generative model should predict; what the model reads is left to encoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from skillprune.data.batch import NO_TARGET
from skillprune.data.encoding import SPECIAL, check_length
from skillprune.data.examples import Example
from skillprune.errors import DataError, Problem, RecipeError


def next_tokens(ids: Tensor, mask: Tensor) -> Tensor:
    """For each real token the one after it, ``NO_TARGET`` where there is none.

    Args:
        ids: Tokens, ``(batch, sequence)``.
        mask: True at real ones, ``(batch, sequence)``.

    Returns:
        ``(batch, sequence)``.
    """
    targets = torch.full_like(ids, NO_TARGET)
    targets[:, :-1] = ids[:, 1:].masked_fill(~(mask[:, :-1] & mask[:, 1:]), NO_TARGET)
    return targets


def check_room(max_length: int) -> None:
    """Sees to it that a text may have a token and another one after it.

    Raises:
        RecipeError: ``max_length`` is 1.
    """
    if max_length < 2:
        message = "leaves no token to predict; should be 2 or more"
        raise RecipeError([Problem("task.max_length", str(max_length), message)])


def check_continued(examples: Sequence[Example], ids: Sequence[Sequence[int]]) -> None:
    """Sees to it that every text has a token with another one after it.

    Raises:
        DataError: A text has a single token.
    """
    for example, tokens in zip(examples, ids, strict=True):
        if len(tokens) < 2:
            raise DataError(f"the text {example.texts[0]!r} has a single token, so there is nothing to predict")


def encode_targets(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[list[int]]:
    """The tokens of each target text with its special tokens, truncated.

    Raises:
        RecipeError: ``max_length`` is more than the target tokenizer allows, or leaves no room.
        DataError: A target has no tokens.
    """
    check_length(tokenizer, max_length)
    if max_length <= tokenizer.num_special_tokens_to_add(pair=False):
        raise RecipeError([Problem("task.max_length", str(max_length), "leaves no room for a target")])
    encoded: Any = tokenizer(
        text_target=[example.target for example in examples],
        truncation=True,
        max_length=max_length,
        padding=False,
        return_special_tokens_mask=True,
    )
    for example, special in zip(examples, encoded[SPECIAL], strict=True):
        if all(special):
            raise DataError(f"the target {example.target!r} has no tokens; the tokenizer knows none of its characters")
    return [list(ids) for ids in encoded["input_ids"]]


def pad_targets(rows: Sequence[Sequence[int]]) -> Tensor:
    """Targets filled up on the right with ``NO_TARGET``: ``(batch, target)``."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[NO_TARGET] * (longest - len(row))] for row in rows], dtype=torch.long)


def decoder_inputs(targets: Tensor, start: int, padding: int) -> Tensor:
    """What a decoder reads so that each position predicts its target: the targets one place to the right.

    Args:
        targets: Tokens, ``NO_TARGET`` at padding, ``(batch, target)``.
        start: The first token, which predicts the first target.
        padding: What stands for ``NO_TARGET``.

    Returns:
        ``(batch, target)``.
    """
    shifted = targets.roll(1, dims=1)
    shifted[:, 0] = start
    return shifted.masked_fill(shifted == NO_TARGET, padding)
