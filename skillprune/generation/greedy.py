"""Writes the likeliest token, again and again; how likely each one is, is left to `writers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from skillprune.generation.running import Tokens
from skillprune.generation.writers import Feeds, Writer

UNHEEDED: Mapping[str, float | None] = {
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": None,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
"""What a generation config may weigh tokens by, with the value that leaves them as they are."""


def unheeded(config: Mapping[str, Any]) -> list[str]:
    """What a generation config asks for and `generate_greedy` does not do, so that transformers would write otherwise.

    Args:
        config: a generation config as a dictionary.
    """
    return [name for name, neutral in UNHEEDED.items() if config.get(name) not in (None, neutral, [])]


def generate_greedy(writer: Writer, feeds: Feeds, max_new_tokens: int) -> Tokens:
    """The likeliest token, again and again, until every text is over.

    Of what a generation config may ask for, the tokens that start, end and pad texts and those that are forced at
    their ends are heeded; nothing that weighs tokens is.

    Args:
        writer: an open writer.
        feeds: texts as the writer reads them.
        max_new_tokens: most tokens that are written.

    Returns:
        ``(batch, written)``, padding after a text's end; written is at most ``max_new_tokens``.
    """
    signs, texts = writer.signs, []
    said, state = writer.read(feeds)
    going = np.ones(len(said), dtype=bool)
    for place in range(max_new_tokens):
        tokens = said.argmax(axis=1)
        forced = signs.first if place == 0 else signs.last if place == max_new_tokens - 1 else None
        tokens = np.where(going, tokens if forced is None else forced, signs.pad)
        texts.append(tokens)
        going = going & ~np.isin(tokens, signs.ends)
        if not going.any() or place == max_new_tokens - 1:
            break
        said, state = writer.step(tokens, state)
    return np.stack(texts, axis=1)


def left_padded(feeds: Feeds) -> dict[str, Tokens]:
    """The same texts, all padding before them, which is where a decoder that continues them wants it.

    Args:
        feeds: arrays ``(batch, sequence)``, among them ``attention_mask``.
    """
    order = np.argsort(feeds["attention_mask"], axis=1, kind="stable")
    return {name: np.take_along_axis(array, order, axis=1) for name, array in feeds.items()}
