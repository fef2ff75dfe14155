"""Examples as padded tensors in batches of like length; what a model does with them is left to others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import torch
from transformers import PreTrainedTokenizerBase

from skillprune.data.batch import Batch
from skillprune.data.encoding import SPECIAL, Encoded, check_length, encode_texts, pad, padding_id, without_segments
from skillprune.data.examples import Example
from skillprune.data.targets import (
    check_continued,
    check_room,
    decoder_inputs,
    encode_targets,
    next_tokens,
    pad_targets,
)
from skillprune.data.templates import encode_template, last_positions, mask_positions
from skillprune.recipe.task import PROMPT_TYPES, TaskType
from skillprune.tasks import Template

_DECODERS = ("causal-lm", "language-modeling", "seq2seq")


def make_batches(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    batch_size: int,
    task_type: str = "text-classification",
    template: Template | None = None,
    target_tokenizer: PreTrainedTokenizerBase | None = None,
    decoder_start: int | None = None,
) -> tuple[Batch, ...]:
    """Tokenises examples and groups those of like length, so that little is padded.

    Args:
        examples: Texts, or pairs of texts, with labels or targets as the task has them.
        tokenizer: The checkpoint's tokenizer; needs a padding token, in a causal model at least an end of text.
        max_length: Longest input in tokens; longer texts are truncated, a template never is. Longest target, too.
        batch_size: Examples per batch; the last batch may hold fewer.
        task_type: Kind of task, as in the recipe.
        template: The prompt; for ``masked-lm`` and ``causal-lm``, which need it.
        target_tokenizer: What writes the targets of ``seq2seq``, if not ``tokenizer``.
        decoder_start: Token that the decoder of ``seq2seq`` starts from, which needs it.

    Returns:
        Batches by falling length of the inputs, so that memory is wanted most at the start; examples of equal length
        stay in order.

    Raises:
        RecipeError: ``max_length`` is more than the model allows, or leaves no room for text or target.
        DataError: A text or target has no tokens, nothing to predict or a mask token of its own, or the tokenizer
            cannot pad or lacks what the kind of task needs.
        ValueError: The kind of task is unknown, or lacks its template or the decoder's first token.
    """
    _check_kind(task_type, template, decoder_start)
    check_length(tokenizer, max_length)
    padding = padding_id(tokenizer, task_type)
    if not examples:
        return ()
    encoded = _encode(examples, tokenizer, max_length, task_type, template)
    if task_type in _DECODERS:
        encoded = without_segments(encoded)
    writer = target_tokenizer or tokenizer
    targets = encode_targets(examples, writer, max_length) if task_type == "seq2seq" else []
    lengths = [len(tokens) for tokens in encoded["input_ids"]]
    order = sorted(range(len(examples)), key=lengths.__getitem__, reverse=True)
    batches = []
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        batch = _batch(examples, encoded, tokenizer, padding, chunk)
        if task_type == "seq2seq" and decoder_start is not None:
            batch = _with_targets(batch, [targets[index] for index in chunk], decoder_start, writer.pad_token_id or 0)
        batches.append(_with_answer(batch, task_type, tokenizer.mask_token_id))
    return tuple(batches)


def _check_kind(task_type: str, template: Template | None, decoder_start: int | None) -> None:
    if task_type not in get_args(TaskType):
        raise ValueError(f"unknown kind of task {task_type!r}; known: {', '.join(get_args(TaskType))}")
    if (template is not None) != (task_type in PROMPT_TYPES):
        raise ValueError(f"a task of type {task_type} {'has no' if template else 'needs a'} template")
    if task_type == "seq2seq" and decoder_start is None:
        raise ValueError("a task of type seq2seq needs decoder_start")


def _encode(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    task_type: str,
    template: Template | None,
) -> Encoded:
    if template is not None:
        return encode_template(examples, tokenizer, template, max_length, masked=task_type == "masked-lm")
    if task_type == "language-modeling":
        check_room(max_length)
    encoded = encode_texts(examples, tokenizer, max_length)
    if task_type == "language-modeling":
        check_continued(examples, encoded["input_ids"])
    return encoded


def _batch(
    examples: Sequence[Example],
    encoded: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    padding: int,
    chunk: Sequence[int],
) -> Batch:
    tensors = pad({name: [rows[index] for index in chunk] for name, rows in encoded.items()}, tokenizer, padding)
    special = tensors.pop(SPECIAL).bool()
    labels = torch.tensor([examples[index].label for index in chunk], dtype=torch.long)
    return Batch(tensors, labels, special, torch.tensor(list(chunk), dtype=torch.long))


def _with_targets(batch: Batch, rows: Sequence[Sequence[int]], decoder_start: int, padding: int) -> Batch:
    """The batch of an encoder-decoder model."""
    targets = pad_targets(rows)
    read = decoder_inputs(targets, decoder_start, padding)
    return replace(batch, inputs={**batch.inputs, "decoder_input_ids": read}, targets=targets)


def _with_answer(batch: Batch, task_type: str, mask_token: int | None) -> Batch:
    """The batch with what a model without a head should answer, and where; any other batch as it is."""
    ids = batch.inputs["input_ids"]
    if task_type == "masked-lm" and mask_token is not None:
        return replace(batch, answer=mask_positions(ids, mask_token))
    if task_type == "causal-lm":
        return replace(batch, answer=last_positions(batch.mask))
    if task_type == "language-modeling":
        return replace(batch, targets=next_tokens(ids, batch.mask))
    return batch
