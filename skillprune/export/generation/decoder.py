"""The graph of a language model with its cache: inputs and outputs in the order and by the names that optimum reads."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from skillprune.export.generation.caches import flat, growing_cache, pairs
from skillprune.export.generation.tracing import trace

_BATCH, _PAST, _NEW = 2, 3, 2
"""Sizes of what is traced; none of them may be one, which a tracer takes for a constant."""


class _Step(nn.Module):
    """Reads some more tokens: all of a prompt with an empty cache, later one at a time."""

    def __init__(self, model: PreTrainedModel, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given, past = tensors[: len(self.names)], tensors[len(self.names) :]
        cache = growing_cache(pairs(past))
        output = self.model(**dict(zip(self.names, given, strict=True)), past_key_values=cache, use_cache=True)
        return (output.logits, *flat(output.past_key_values))


def takes_positions(model: PreTrainedModel) -> bool:
    """Whether the model can be told where each token stands; others work it out from the mask, or do not look."""
    return "position_ids" in inspect.signature(model.forward).parameters


def write_decoder(model: PreTrainedModel, path: Path) -> None:
    """Writes one graph that reads a prompt and continues it.

    Inputs are ``input_ids`` and where the model takes them ``position_ids`` ``(batch, sequence)``, ``attention_mask``
    ``(batch, past + sequence)`` and ``past_key_values.N.key`` and ``.value`` ``(batch, heads, past, size)``, where past
    may be 0. Outputs are ``logits`` ``(batch, sequence, vocabulary)`` and ``present.N.key`` and ``.value``.

    Args:
        model: a language model in evaluation mode.
        path: the file to write.

    Raises:
        VerificationFailed: the exporter cannot write this model.
    """
    inputs = _example(model)
    given = tuple(name for name in inputs if "." not in name)
    past = [name for name in inputs if "." in name]
    present = [name.replace("past_key_values", "present") for name in past]
    tokens, whole = {0: "batch", 1: "sequence"}, "past_sequence + sequence"
    axes: dict[str, Mapping[int, str]] = {name: tokens for name in (*given, "logits")}
    axes |= {"attention_mask": {0: "batch", 1: whole}}
    axes |= {name: {0: "batch", 2: "past_sequence"} for name in past}
    axes |= {name: {0: "batch", 2: whole} for name in present}
    trace(_Step(model, given).eval(), inputs, ["logits", *present], axes, path)


def _example(model: PreTrainedModel) -> dict[str, Tensor]:
    """Two texts of which three tokens are read and two are new; the first is shorter, so it is padded on the left."""
    length = _PAST + _NEW
    ids = torch.arange(_BATCH * length, device=model.device).view(_BATCH, length) % model.config.vocab_size
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    given = {"input_ids": ids, "attention_mask": mask}
    if takes_positions(model):
        given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    cache = growing_cache([None] * len(_layers(model, given)))
    read = {name: value[:, :_PAST].clone() for name, value in given.items()}
    with torch.inference_mode():
        model(**read, past_key_values=cache, use_cache=True)
    new = {name: value if name == "attention_mask" else value[:, _PAST:].clone() for name, value in given.items()}
    names = [f"past_key_values.{layer}.{part}" for layer in range(len(cache.layers)) for part in ("key", "value")]
    return {**new, **dict(zip(names, flat(cache), strict=True))}


def _layers(model: PreTrainedModel, given: Mapping[str, Tensor]) -> list[object]:
    """The layers of the cache that the model makes for itself."""
    with torch.inference_mode():
        return list(model(**given, use_cache=True).past_key_values.layers)
