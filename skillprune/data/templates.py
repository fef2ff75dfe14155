"""Filled-in templates as rows of token ids that keep the whole template; what the answer means is left to others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from skillprune.data.encoding import SPECIAL, Encoded, no_tokens
from skillprune.data.examples import Example
from skillprune.errors import DataError, Problem, RecipeError
from skillprune.tasks import Rendered, Template

_OFFSETS = "offset_mapping"


def encode_template(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    max_length: int,
    *,
    masked: bool,
) -> Encoded:
    """Filled-in templates; where one is too long, its longest text loses tokens from the end, the template none.

    What the tokenizer adds after the end is removed from a prompt that goes on there, because it would end it.

    Args:
        examples: Texts for the template's columns.
        tokenizer: Has to be a fast one, which knows where in the text a token comes from.
        template: The prompt.
        max_length: Longest input in tokens.
        masked: Whether the answer stands at a mask token; otherwise it follows the end.

    Raises:
        RecipeError: The template leaves no room for text, or itself spells the mask token.
        DataError: A text has no tokens or spells the mask token, or the tokenizer is not fast or has no mask token.
    """
    _check_tokenizer(tokenizer, masked)
    mask_token = str(tokenizer.mask_token) if masked else None
    rendered = [template.render(example.texts, mask_token) for example in examples]
    if mask_token is not None:
        _check_masks(examples, template, mask_token)
    encoded: Any = tokenizer(
        [each.text for each in rendered],
        padding=False,
        truncation=False,
        return_special_tokens_mask=True,
        return_offsets_mapping=True,
        verbose=False,  # a prompt may be longer than the model allows until it is cut
    )
    names = [name for name in encoded if name != _OFFSETS]
    cut: dict[str, list[list[int]]] = {name: [] for name in names}
    for row, example in enumerate(examples):
        special = encoded[SPECIAL][row]
        end = len(special) if masked else _end(special)
        texts = _text_tokens(encoded[_OFFSETS][row][:end], special, rendered[row])
        kept = _kept(end, texts, example, max_length)
        for name in names:
            cut[name].append([encoded[name][row][position] for position in kept])
    return cut


def mask_positions(ids: Tensor, mask_token: int) -> Tensor:
    """Where the mask token stands in each row of ``(batch, sequence)``: ``(batch,)``."""
    return (ids == mask_token).long().argmax(dim=1)


def last_positions(mask: Tensor) -> Tensor:
    """Where the last real token stands in each row of ``(batch, sequence)``, whatever side is padded: ``(batch,)``."""
    return (mask.long() * torch.arange(1, mask.shape[1] + 1)).argmax(dim=1)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, masked: bool) -> None:
    if masked and tokenizer.mask_token_id is None:
        raise DataError("the checkpoint's tokenizer has no mask token; a task of type masked-lm needs one")
    if not tokenizer.is_fast:
        raise DataError(
            "the checkpoint's tokenizer is not a fast one (tokenizer.json), so a template cannot be told from its texts"
        )


def _check_masks(examples: Sequence[Example], template: Template, mask_token: str) -> None:
    if mask_token in template.render([""] * len(template.columns), "").text:
        raise RecipeError([Problem("task.template", template.source, f"spells {mask_token} out; write {{mask}} once")])
    for example in examples:
        for text in example.texts:
            if mask_token in text:
                raise DataError(f"the text {text!r} contains the mask token {mask_token}; remove it")


def _end(special: Sequence[int]) -> int:
    """How many tokens there are up to the last that the tokenizer did not add."""
    end = len(special)
    while end and special[end - 1]:
        end -= 1
    return end


def _text_tokens(offsets: Sequence[tuple[int, int]], special: Sequence[int], rendered: Rendered) -> list[list[int]]:
    """For each text column, the positions of the tokens that hold nothing but its characters and space before it."""
    columns: list[list[int]] = [[] for _ in rendered.spans]
    for position, (start, end) in enumerate(offsets):
        inner = rendered.text[start:end].strip()
        if inner:
            start = rendered.text.index(inner, start)
            end = start + len(inner)
        for tokens, (first, last) in zip(columns, rendered.spans, strict=True):
            if not special[position] and first <= start < last and end <= last:
                tokens.append(position)
    return columns


def _kept(count: int, texts: list[list[int]], example: Example, max_length: int) -> list[int]:
    """The positions that stay of ``count`` tokens, of which ``texts`` may be cut."""
    if not any(texts):
        raise no_tokens(example.texts[0])
    left = [len(tokens) for tokens in texts]
    for _ in range(count - max_length):
        longest = left.index(max(left))
        left[longest] -= 1
        if left[longest] < 1:
            message = f"leaves no room for the text {example.texts[longest]!r}; raise it or shorten task.template"
            raise RecipeError([Problem("task.max_length", str(max_length), message)])
    gone = {position for tokens, size in zip(texts, left, strict=True) for position in tokens[size:]}
    return [position for position in range(count) if position not in gone]
