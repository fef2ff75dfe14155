"""Examples as padded tensors in batches of like length; what a model does with them is left to others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from skillprune.data.batch import Batch
from skillprune.data.examples import Example
from skillprune.errors import DataError, Problem, RecipeError

_SPECIAL = "special_tokens_mask"
_MASK = "attention_mask"


def make_batches(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, max_length: int, batch_size: int
) -> tuple[Batch, ...]:
    """Tokenises examples and groups those of like length, so that little is padded.

    Args:
        examples: Texts, or pairs of texts, with labels.
        tokenizer: The checkpoint's tokenizer; needs a padding token.
        max_length: Longest input in tokens; longer ones are truncated.
        batch_size: Examples per batch; the last batch may hold fewer.

    Returns:
        Batches by rising length; examples of equal length stay in order.

    Raises:
        RecipeError: ``max_length`` is more than the model allows, or leaves no room for text.
        DataError: a text has no tokens, or the tokenizer cannot pad.
    """
    _check_tokenizer(tokenizer, max_length)
    if not examples:
        return ()
    encoded = _encode(examples, tokenizer, max_length)
    lengths = [len(tokens) for tokens in encoded["input_ids"]]
    order = sorted(range(len(examples)), key=lengths.__getitem__)
    chunks = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
    return tuple(_batch(examples, encoded, tokenizer, chunk) for chunk in chunks)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    if max_length > tokenizer.model_max_length:
        wanted = f"the model allows {tokenizer.model_max_length} tokens"
        raise RecipeError([Problem("task.max_length", str(max_length), wanted)])
    if tokenizer.pad_token is None:
        raise DataError("the checkpoint's tokenizer has no padding token, so texts cannot be batched")


def _encode(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Mapping[str, list[list[int]]]:
    pairs = len(examples[0].texts) == 2
    room = max_length - tokenizer.num_special_tokens_to_add(pair=pairs)
    if room < len(examples[0].texts):
        raise RecipeError([Problem("task.max_length", str(max_length), "leaves no room beside the special tokens")])
    columns = [[example.texts[column] for example in examples] for column in range(len(examples[0].texts))]
    encoded: Any = tokenizer(
        *columns, truncation=True, max_length=max_length, padding=False, return_special_tokens_mask=True
    )
    for example, special in zip(examples, encoded[_SPECIAL], strict=True):
        if all(special):
            raise DataError(f"the text {example.texts[0]!r} has no tokens; the tokenizer knows none of its characters")
    return {name: encoded[name] for name in encoded}


def _batch(
    examples: Sequence[Example],
    encoded: Mapping[str, list[list[int]]],
    tokenizer: PreTrainedTokenizerBase,
    chunk: Sequence[int],
) -> Batch:
    names = [name for name in encoded if name in {*tokenizer.model_input_names, _MASK, _SPECIAL}]
    rows = {name: [encoded[name][index] for index in chunk] for name in names}
    tensors: dict[str, Tensor] = dict(pad_without_fast_tokenizer_warning(tokenizer, rows, return_tensors="pt"))
    special = tensors.pop(_SPECIAL).bool() & tensors[_MASK].bool()  # the tokenizer counts padding as special
    labels = torch.tensor([examples[index].label for index in chunk], dtype=torch.long)
    return Batch(tensors, labels, special, torch.tensor(list(chunk), dtype=torch.long))
