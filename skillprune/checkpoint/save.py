"""Writes a pruned model so that `from_pretrained` reads it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from skillprune.checkpoint.formats import choose, prepared, widths_of
from skillprune.checkpoint.record import Record, write_record
from skillprune.recipe import Form, Format


def save_pruned(
    model: PreTrainedModel,
    processor: Any,
    directory: Path,
    *,
    dtype: torch.dtype,
    form: Format = "auto",
    history: Sequence[Mapping[str, Any]] = (),
) -> Form:
    """Writes config, safetensors weights and tokenizer, in ``dtype``; casts the model to it in place.

    Layers of equal width make a stock checkpoint that anything loads. Uneven ones are named in the config, and
    ``import skillprune`` is what it takes to load them.

    Args:
        model: what to write.
        processor: its tokenizer, image processor or the like; None writes none.
        directory: where to.
        dtype: number format of the weights.
        form: ``uniform`` (stock), ``per-layer`` (needs skillprune), ``padded`` (stock, zeros instead of neurons),
            ``auto_map`` (needs trust in the code it carries), or ``auto``: ``uniform`` where possible, else
            ``per-layer``.
        history: what is known of every pruning that led here.

    Returns:
        The form it was written in.

    Raises:
        CheckpointError: ``uniform`` is asked for, but the layers differ.
    """
    written = choose(model, form)
    for parameter in model.parameters():  # not buffers: those that are computed, not stored, would stay rounded
        parameter.data = parameter.data.to(dtype)
    vars(model.config).pop("auto_map", None)  # names code that does not come along, of a model that was not pruned
    record = Record(written, widths_of(model), history)
    with prepared(model, written) as extras:
        model.save_pretrained(directory)
    for name, text in extras.files.items():
        (directory / name).write_text(text, encoding="utf-8")
    if extras.config:
        _extend_config(directory / "config.json", extras.config)
    write_record(record, directory)
    if processor is not None:
        processor.save_pretrained(directory)
    return written


def _extend_config(path: Path, more: Mapping[str, Any]) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **more}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
