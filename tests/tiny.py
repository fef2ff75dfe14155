"""Tiny random models and batches that tests share; nothing here is read from a file or from the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

from skillprune.data import NO_TARGET, Batch

Model = TypeVar("Model", bound=PreTrainedModel)

VOCABULARY, PAD, END, POSITIONS = 60, 1, 2, 64
"""Token ids there are, the ones that pad and end a text (in every family), and rows of the position table."""

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


def tiny_llama(*, layers: int = 3, hidden: int = 16, width: int = 32, seed: int = 0) -> LlamaForCausalLM:
    """LLaMA that predicts the next token, in evaluation mode; two query heads share one pair of key and value."""
    config = _llama_config(layers, hidden, width)
    return _seeded(lambda: LlamaForCausalLM(config), seed)


def tiny_llama_classifier(
    num_labels: int = 2, *, layers: int = 3, hidden: int = 16, width: int = 32, seed: int = 0
) -> LlamaForSequenceClassification:
    """LLaMA classifier, which answers at the last token, in evaluation mode."""
    config = _llama_config(layers, hidden, width, num_labels=num_labels)
    return _seeded(lambda: LlamaForSequenceClassification(config), seed)


def tiny_bart(
    *,
    layers: int = 3,
    hidden: int = 16,
    width: int = 32,
    decoder_layers: int = 2,
    decoder_width: int = 24,
    seed: int = 0,
) -> BartForConditionalGeneration:
    """BART in evaluation mode; ``layers`` and ``width`` are the encoder's, the decoder is smaller in both."""
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=hidden,
        encoder_layers=layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=width,
        decoder_ffn_dim=decoder_width,
        max_position_embeddings=POSITIONS,
        bos_token_id=0,
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=END,
        forced_eos_token_id=None,
    )
    return _seeded(lambda: BartForConditionalGeneration(config), seed)


def tiny_bert_masked_lm(**sizes: int) -> BertForMaskedLM:
    """BERT that predicts masked tokens, with the sizes of `tiny_bert`."""
    config = tiny_bert(**sizes).config
    return _seeded(lambda: BertForMaskedLM(config), sizes.get("seed", 0))


def tiny_roberta_masked_lm(**sizes: int) -> RobertaForMaskedLM:
    """RoBERTa that predicts masked tokens, with the sizes of `tiny_roberta`."""
    config = tiny_roberta(**sizes).config
    return _seeded(lambda: RobertaForMaskedLM(config), sizes.get("seed", 0))


def tiny_distilbert_masked_lm(**sizes: int) -> DistilBertForMaskedLM:
    """DistilBERT that predicts masked tokens, with the sizes of `tiny_distilbert`."""
    config = tiny_distilbert(**sizes).config
    return _seeded(lambda: DistilBertForMaskedLM(config), sizes.get("seed", 0))


TINY: dict[str, Callable[..., PreTrainedModel]] = {
    "bert": tiny_bert,
    "roberta": tiny_roberta,
    "distilbert": tiny_distilbert,
}
"""Builders of encoder classifiers by ``model_type``, for parametrised tests; all take the same arguments."""

TINY_MASKED_LM: dict[str, Callable[..., PreTrainedModel]] = {
    "bert": tiny_bert_masked_lm,
    "roberta": tiny_roberta_masked_lm,
    "distilbert": tiny_distilbert_masked_lm,
}
"""The same encoders with a head that predicts tokens."""

TINY_WRITERS: dict[str, Callable[..., PreTrainedModel]] = {"llama": tiny_llama, "bart": tiny_bart}
"""Builders of models that write text; both take ``layers``, ``hidden``, ``width`` and ``seed``."""

TINY_ALL = {**TINY, **TINY_WRITERS}
"""One model for every row of the family table."""

TINY_WIDTHS: dict[str, dict[str, tuple[int, ...]]] = {
    **dict.fromkeys(TINY, {"encoder": (32, 32, 32)}),
    "llama": {"decoder": (32, 32, 32)},
    "bart": {"encoder": (32, 32, 32), "decoder": (24, 24)},
}
"""Neurons per stack and layer of each of them, unless told otherwise."""


def tiny_keep(family: str, *keep: Iterable[int]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Kept neurons for a model of three layers; BART's decoder takes those of its width from the last ones, reversed.

    So every layer of every stack is cut, and no two stacks alike.
    """
    layers = tuple(tuple(sorted(layer)) for layer in keep)
    if family != "bart":
        return {stack: layers for stack in TINY_WIDTHS[family]}
    (*_, last), decoder = TINY_WIDTHS["bart"]["decoder"], layers[: -len(TINY_WIDTHS["bart"]["decoder"]) - 1 : -1]
    return {"encoder": layers, "decoder": tuple(tuple(n for n in layer if n < last) for layer in decoder)}


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
    targets: Literal["next", "written"] | None = None,
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
        targets: "next" has every token predict the one after it, as in a language model; "written" has a decoder write
            another text, of another length than what is read (see `written`).
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in lengths]
    classes = [LABELS[index % len(LABELS)] for index in range(len(lengths))] if labels is None else list(labels)
    places = list(range(len(lengths))) if order is None else list(order)
    chunks = [places[start : start + batch_size] for start in range(0, len(places), batch_size)]
    batches = tuple(_batch(tokens, classes, chunk, pad_to, side, positions) for chunk in chunks)
    if targets == "next":
        return tuple(map(predicting_next, batches))
    if targets == "written":
        texts = [written(text) for text in tokens]
        return tuple(_writing(batch, texts, pad_to) for batch in batches)
    return batches


def batches_for(family: str, **options: Any) -> tuple[Batch, ...]:
    """What `tiny_batches` makes, with the targets that the model of ``TINY_ALL[family]`` is trained on."""
    targets = {"llama": "next", "bart": "written"}.get(family)
    return tiny_batches(targets=targets, **options)


def predicting_next(batch: Batch) -> Batch:
    """The batch with the next real token as every token's target; the last one of a text has none."""
    ids, mask = batch.inputs["input_ids"], batch.mask
    targets = torch.full_like(ids, NO_TARGET)
    both = mask[:, :-1] & mask[:, 1:]
    targets[:, :-1][both] = ids[:, 1:][both]
    return replace(batch, targets=targets)


def written(text: Tensor) -> Tensor:
    """A text to write for a text that is read: of 2 to 7 tokens, a function of that text alone, then the end."""
    length = 1 + int(text.sum()) % 6
    return torch.cat([3 + (7 * text.repeat(7)[:length] + length) % (VOCABULARY - 3), torch.tensor([END])])


def _writing(batch: Batch, texts: Sequence[Tensor], pad_to: int) -> Batch:
    """The batch with ``texts`` as targets of a decoder, which is given each token to predict the next."""
    wanted = [texts[index] for index in batch.indices.tolist()]
    longest = max(pad_to, *map(len, wanted))
    given, targets = torch.full((len(batch), longest), PAD), torch.full((len(batch), longest), NO_TARGET)
    for row, text in enumerate(wanted):
        given[row, : len(text)] = torch.cat([torch.tensor([END]), text[:-1]])
        targets[row, : len(text)] = text
    return replace(batch, inputs={**batch.inputs, "decoder_input_ids": given}, targets=targets)


def _llama_config(layers: int, hidden: int, width: int, **head: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=width,
        max_position_embeddings=POSITIONS,
        bos_token_id=0,
        pad_token_id=PAD,
        eos_token_id=END,
        **head,
    )


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


def _seeded(build: Callable[[], Model], seed: int) -> Model:
    """Builds with random numbers of its own; every parameter, biases too, is large enough to matter in a test."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.eval()
    return model
