"""Tiny random models and batches that tests share; nothing here is read from a file or from the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from skillprune.data import Batch

VOCABULARY, PAD, POSITIONS = 60, 1, 64
"""Token ids there are, the one that pads (in every family), and rows of the position table."""

LENGTHS = (3, 9, 5, 12, 7, 4, 10, 6, 8, 11)
LABELS = (0, 1, 0, 0, 1, 0, 1, 0, 0, 1)
"""Real tokens and class of the examples `tiny_batches` makes unless told otherwise: mixed lengths, unequal classes."""


def tiny_bert(
    num_labels: int = 2, *, layers: int = 3, hidden: int = 16, width: int = 32, chunk: int = 0, seed: int = 0
) -> BertForSequenceClassification:
    """BERT classifier in evaluation mode; ``chunk`` is ``chunk_size_feed_forward``, ``width`` the neurons per layer."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=width,
        max_position_embeddings=POSITIONS,
        pad_token_id=PAD,
        num_labels=num_labels,
        chunk_size_feed_forward=chunk,
    )
    return _seeded(lambda: BertForSequenceClassification(config), seed)


def tiny_roberta(
    num_labels: int = 2, *, layers: int = 3, hidden: int = 16, width: int = 32, chunk: int = 0, seed: int = 0
) -> RobertaForSequenceClassification:
    """RoBERTa classifier in evaluation mode; ``chunk`` is ``chunk_size_feed_forward``, ``width`` neurons per layer."""
    config = RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=width,
        max_position_embeddings=POSITIONS,
        pad_token_id=PAD,
        num_labels=num_labels,
        chunk_size_feed_forward=chunk,
    )
    return _seeded(lambda: RobertaForSequenceClassification(config), seed)


def tiny_distilbert(
    num_labels: int = 2, *, layers: int = 3, hidden: int = 16, width: int = 32, chunk: int = 0, seed: int = 0
) -> DistilBertForSequenceClassification:
    """DistilBERT classifier in evaluation mode; ``chunk`` is ``chunk_size_feed_forward``, ``width`` its neurons."""
    config = DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=hidden,
        n_layers=layers,
        n_heads=2,
        hidden_dim=width,
        max_position_embeddings=POSITIONS,
        pad_token_id=PAD,
        num_labels=num_labels,
        chunk_size_feed_forward=chunk,
    )
    return _seeded(lambda: DistilBertForSequenceClassification(config), seed)


TINY: dict[str, Callable[..., PreTrainedModel]] = {
    "bert": tiny_bert,
    "roberta": tiny_roberta,
    "distilbert": tiny_distilbert,
}
"""Builders by ``model_type``, for parametrised tests; all take the same arguments."""


def tiny_batches(
    *,
    lengths: Sequence[int] = LENGTHS,
    labels: Sequence[int] | None = None,
    batch_size: int = 4,
    pad_to: int = 0,
    side: Literal["left", "right"] = "right",
    positions: bool = False,
    order: Sequence[int] | None = None,
    seed: int = 0,
) -> tuple[Batch, ...]:
    """Random examples, example ``i`` with ``lengths[i]`` real tokens; the same seed and lengths give the same tokens.

    Args:
        lengths: real tokens per example, special ones included.
        labels: class per example; `LABELS`, repeated, when None.
        batch_size: examples per batch.
        pad_to: pad at least to this length; otherwise to the longest of the batch.
        side: where the padding goes. Give ``positions`` with "left", or the model reads other position embeddings.
        positions: whether explicit ``position_ids`` come along, counted from ``PAD + 1`` as RoBERTa does by itself and
            the others do not (so compare with batches that have them too).
        order: which example stands where; in order when None. ``Batch.indices`` keeps pointing at the example.
        seed: seed of the token ids.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in lengths]
    classes = [LABELS[index % len(LABELS)] for index in range(len(lengths))] if labels is None else list(labels)
    places = list(range(len(lengths))) if order is None else list(order)
    chunks = [places[start : start + batch_size] for start in range(0, len(places), batch_size)]
    return tuple(_batch(tokens, classes, chunk, pad_to, side, positions) for chunk in chunks)


def _batch(
    tokens: Sequence[Tensor],
    classes: Sequence[int],
    chunk: Sequence[int],
    pad_to: int,
    side: Literal["left", "right"],
    positions: bool,
) -> Batch:
    longest = max(pad_to, *(len(tokens[index]) for index in chunk))
    shape = (len(chunk), longest)
    ids, mask = torch.full(shape, PAD), torch.zeros(shape, dtype=torch.long)
    special, places = torch.zeros(shape, dtype=torch.bool), torch.full(shape, PAD)
    for row, index in enumerate(chunk):
        start = 0 if side == "right" else longest - len(tokens[index])
        real = slice(start, start + len(tokens[index]))
        ids[row, real], mask[row, real] = tokens[index], 1
        special[row, [real.start, real.stop - 1]] = True
        places[row, real] = PAD + 1 + torch.arange(len(tokens[index]))
    inputs = {"input_ids": ids, "attention_mask": mask} | ({"position_ids": places} if positions else {})
    return Batch(inputs, torch.tensor([classes[index] for index in chunk]), special, torch.tensor(list(chunk)))


def _seeded(build: Callable[[], PreTrainedModel], seed: int) -> PreTrainedModel:
    """Builds with random numbers of its own; every parameter, biases too, is large enough to matter in a test."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()
