"""Texts as rows of token ids, and rows as padded tensors; templates and targets are left to files of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from skillprune.data.examples import Example
from skillprune.errors import DataError, Problem, RecipeError

SPECIAL = "special_tokens_mask"
MASK = "attention_mask"
_SEGMENTS = "token_type_ids"

Encoded = Mapping[str, Sequence[Sequence[int]]]
"""What a tokenizer returns: every input by name, for every example one number per token."""

_CAUSAL = ("causal-lm", "language-modeling")


def check_length(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Sees to it that a tokenizer's model takes inputs of this length.

    Raises:
        RecipeError: It does not.
    """
    if max_length > tokenizer.model_max_length:
        wanted = f"the model allows {tokenizer.model_max_length} tokens"
        raise RecipeError([Problem("task.max_length", str(max_length), wanted)])


def padding_id(tokenizer: PreTrainedTokenizerBase, task_type: str) -> int:
    """The token that fills up short rows; a causal model, which never looks at it, makes do with the end of text.

    Raises:
        DataError: There is none.
    """
    token = tokenizer.pad_token_id
    if token is None and task_type in _CAUSAL:
        token = tokenizer.eos_token_id
    if token is None:
        raise DataError("the checkpoint's tokenizer has no padding token, so texts cannot be batched")
    return int(token)


def encode_texts(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Texts, or pairs of texts, with special tokens, truncated as the tokenizer does it.

    Raises:
        RecipeError: ``max_length`` leaves no room for text.
        DataError: A text has no tokens.
    """
    pairs = len(examples[0].texts) == 2
    room = max_length - tokenizer.num_special_tokens_to_add(pair=pairs)
    if room < len(examples[0].texts):
        raise RecipeError([Problem("task.max_length", str(max_length), "leaves no room beside the special tokens")])
    columns = [[example.texts[column] for example in examples] for column in range(len(examples[0].texts))]
    encoded: Any = tokenizer(
        *columns, truncation=True, max_length=max_length, padding=False, return_special_tokens_mask=True
    )
    for example, special in zip(examples, encoded[SPECIAL], strict=True):
        if all(special):
            raise no_tokens(example.texts[0])
    return {name: encoded[name] for name in encoded}


def without_segments(encoded: Encoded) -> Encoded:
    """The same rows without token types, if these are 0 throughout and so say nothing.

    Tokenizers of no particular model write them even for decoders, of which some refuse them and others, such as GPT-2,
    would add the embedding of an ordinary token to every position.
    """
    if any(map(any, encoded.get(_SEGMENTS, ()))):
        return encoded
    return {name: rows for name, rows in encoded.items() if name != _SEGMENTS}


def no_tokens(text: str) -> DataError:
    """The error that a text is nothing to a tokenizer."""
    return DataError(f"the text {text!r} has no tokens; the tokenizer knows none of its characters")


def pad(encoded: Encoded, tokenizer: PreTrainedTokenizerBase, token: int) -> dict[str, Tensor]:
    """Rows filled up to the longest, on the side the tokenizer fills: every input ``(batch, sequence)``.

    Args:
        encoded: Rows of one batch.
        tokenizer: Says which inputs the model takes, and the side.
        token: Padding token.

    Returns:
        The model's inputs, the attention mask, and the special tokens mask, which is 0 at padding.
    """
    filling = {"input_ids": token, _SEGMENTS: tokenizer.pad_token_type_id}
    names = [name for name in encoded if name in {*tokenizer.model_input_names, MASK, SPECIAL}]
    longest = max(map(len, encoded["input_ids"]))
    tensors = {}
    for name in names:
        rows = []
        for row in encoded[name]:
            padding = [filling.get(name, 0)] * (longest - len(row))
            rows.append([*padding, *row] if tokenizer.padding_side == "left" else [*row, *padding])
        tensors[name] = torch.tensor(rows, dtype=torch.long)
    return tensors
