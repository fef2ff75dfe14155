"""The three graphs of an encoder-decoder, in the order and by the names that optimum reads.

What the encoder said is turned into keys and values once, by the first step of the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from skillprune.export.generation.caches import Pair, flat, growing_pair, pairs
from skillprune.export.generation.tracing import Moving, trace
from skillprune.generation import ENCODER, FIRST, NEXT

_BATCH, _READ, _WRITTEN = 2, 5, 3
"""Sizes of what is traced; none of them may be one, which a tracer takes for a constant."""

_TEXT: Mapping[int, str] = {0: "batch", 1: "encoder_sequence"}
_WRITTEN_AXES: Mapping[int, str] = {0: "batch", 1: "decoder_sequence"}


class _Encoder(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        output = self.model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)
        hidden: Tensor = output.last_hidden_state
        return hidden


class _First(nn.Module):
    """Reads what the encoder said, and the first tokens of what is written."""

    def __init__(self, model: PreTrainedModel, layers: int) -> None:
        super().__init__()
        self.model = model
        self.layers = layers

    def forward(self, encoder_attention_mask: Tensor, input_ids: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        nothing: list[Pair | None] = [None] * self.layers
        cache = growing_pair(nothing, nothing)
        logits = _decoded(self.model, encoder_attention_mask, input_ids, hidden, cache)
        own, crossed = pairs(flat(cache.self_attention_cache)), pairs(flat(cache.cross_attention_cache))
        return (logits, *(tensor for layer in zip(own, crossed, strict=True) for pair in layer for tensor in pair))


class _Next(nn.Module):
    """Reads one more token."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, encoder_attention_mask: Tensor, input_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        own, crossed = pairs(past)[::2], pairs(past)[1::2]
        cache = growing_pair(own, crossed)
        # Nothing reads what the encoder said, for its keys and values are in the cache; only its length is asked for.
        hidden = encoder_attention_mask[..., None].to(past[0].dtype).expand(-1, -1, _hidden_size(self.model))
        logits = _decoded(self.model, encoder_attention_mask, input_ids, hidden, cache)
        return (logits, *flat(cache.self_attention_cache))


def write_encoder_decoder(model: PreTrainedModel, directory: Path) -> None:
    """Writes the encoder, the decoder's first step and its later ones.

    The encoder gives ``last_hidden_state`` ``(batch, encoder_sequence, hidden)``. The first step takes it with
    ``encoder_attention_mask`` and ``input_ids`` ``(batch, decoder_sequence)`` and gives ``logits`` and of every layer
    ``present.N.decoder.key``, ``present.N.decoder.value``, ``present.N.encoder.key`` and ``present.N.encoder.value``
    ``(batch, heads, length, size)``. The later ones take these as ``past_key_values.N...`` and give ``logits`` and
    ``present.N.decoder...``.

    Args:
        model: an encoder-decoder of texts in evaluation mode.
        directory: where to write.

    Raises:
        VerificationFailed: the exporter cannot write this model.
    """
    ids, mask, written = _example(model)
    with torch.inference_mode():
        reply = model(input_ids=ids, attention_mask=mask, decoder_input_ids=written, use_cache=True)
        layers = len(reply.past_key_values.self_attention_cache.layers)
        hidden = reply.encoder_last_hidden_state
        first = _First(model, layers).eval()
        _, *cached = first(mask, written, hidden)
    parts = [(layer, side) for layer in range(layers) for side in ("decoder", "encoder")]
    names = [f"{layer}.{side}.{part}" for layer, side in parts for part in ("key", "value")]
    present, past = [f"present.{name}" for name in names], [f"past_key_values.{name}" for name in names]

    text = {"input_ids": ids, "attention_mask": mask}
    axes: Moving = {name: _TEXT for name in (*text, "last_hidden_state")}
    trace(_Encoder(model).eval(), text, ["last_hidden_state"], axes, directory / ENCODER)

    start = {"encoder_attention_mask": mask, "input_ids": written, "encoder_hidden_states": hidden}
    axes = {name: _WRITTEN_AXES if name == "input_ids" else _TEXT for name in start} | {"logits": _WRITTEN_AXES}
    axes |= _cache_axes(present, "decoder_sequence")
    trace(first, start, ["logits", *present], axes, directory / FIRST)

    later = {"encoder_attention_mask": mask, "input_ids": written[:, -1:].clone()}
    own = [name for name in present if ".decoder." in name]
    axes = {"encoder_attention_mask": _TEXT, "input_ids": {0: "batch"}, "logits": {0: "batch"}}
    axes |= _cache_axes(past, "past_sequence") | _cache_axes(own, "past_sequence + 1")
    inputs = {**later, **dict(zip(past, cached, strict=True))}
    trace(_Next(model).eval(), inputs, ["logits", *own], axes, directory / NEXT)


def _decoded(model: PreTrainedModel, mask: Tensor, ids: Tensor, hidden: Tensor, cache: object) -> Tensor:
    said = BaseModelOutput(last_hidden_state=hidden)
    output = model(
        encoder_outputs=said, attention_mask=mask, decoder_input_ids=ids, past_key_values=cache, use_cache=True
    )
    logits: Tensor = output.logits
    return logits


def _cache_axes(names: list[str], own: str) -> dict[str, Mapping[int, str]]:
    return {name: {0: "batch", 2: "encoder_sequence" if ".encoder." in name else own} for name in names}


def _hidden_size(model: PreTrainedModel) -> int:
    return int(model.config.hidden_size)


def _example(model: PreTrainedModel) -> tuple[Tensor, Tensor, Tensor]:
    """Two texts that are read, the second of which is padded; its mask; and three tokens that are written for each."""
    vocabulary = model.config.vocab_size
    ids = torch.arange(_BATCH * _READ, device=model.device).view(_BATCH, _READ) % vocabulary
    mask = torch.ones_like(ids)
    mask[1, -1] = 0
    return ids, mask, torch.arange(_BATCH * _WRITTEN, device=model.device).view(_BATCH, _WRITTEN) % vocabulary
